"""Reference pages of the Python API: a page per room of the library, from the docstrings."""

import ast
import re
from pathlib import Path

from settings_pages import write
from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = "reference/api"
SKIPPED = {"norton.__main__", "norton.deployment.run_onnx"}  # programs


def _modules(package: Path) -> list[str]:
    """Dotted names of a package and all modules in it, the package first."""
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in SKIPPED and not any(part.startswith("_") for part in parts[:-1]):
            found.append(name)
    return sorted(found, key=lambda name: (name.count(".") > package.name.count("."), name))


def _room_page(room: str, modules: list[str]) -> str:
    lines = [f"# {room}", ""]
    for module in modules:
        heading = [] if module == room else [f"## {module}", ""]
        lines += [
            *heading,
            "```{eval-rst}",
            f".. automodule:: {module}",
            "   :members:",
            "   :ignore-module-all:",
            "```",
            "",
        ]
    return "\n".join(lines)


def pages() -> dict[str, str]:
    rooms = [path.parent for path in sorted((REPOSITORY / "norton").glob("*/__init__.py"))]
    rooms = [path for path in rooms if not path.name.startswith("_")]
    rooms.append(REPOSITORY / "detection")
    made = {}
    for path in rooms:
        name = ".".join(path.relative_to(REPOSITORY).parts)
        made[name] = _room_page(name, _modules(path))
    lines = [
        "# Python",
        "",
        "`import norton` is the whole interface; the rooms below it are for those who need more.",
        "",
    ]
    lines += ["```{eval-rst}", ".. automodule:: norton", "   :members:", "   :imported-members:", "```", ""]
    lines += ["## Rooms", "", "| room | holds |", "| --- | --- |"]
    for name, path in zip(made, rooms, strict=True):
        lines.append(f"| [`{name}`]({name}.md) | {_first_paragraph(path / '__init__.py')} |")
    lines += ["", "```{toctree}", ":hidden:", "", *made, "```", ""]
    return made | {"index": "\n".join(lines)}


def _first_paragraph(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def escape(text: str) -> str:
    """A docstring's line as reStructuredText reads it: outside of backticks, only words."""
    parts = re.split(r"(``?[^`]*``?)", text)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"[*|\\]|_(?=\W|$)", lambda match: "\\" + match[0], parts[i])
    return "".join(parts)


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with names in backticks, lists, and examples that are indented or prompts."""
    lines[:] = list(_converted(lines))


def _converted(lines: list[str]):
    in_block = False
    for i, line in enumerate(lines):
        indented = line.startswith("    ") and line.strip()
        if indented and not in_block and (i == 0 or not lines[i - 1].strip()):
            in_block = True
            yield "::"
            yield ""
        if in_block and line.strip() and not indented:
            in_block = False
        yield line if in_block or line.startswith((">>>", "::")) else escape(line)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / FOLDER, pages()))
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
