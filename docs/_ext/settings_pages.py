"""Reference pages of all settings, written from `configs/` before each build."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from sphinx.application import Sphinx

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
FOLDER = "reference/settings"
NO_COMMAND = {"base"}


@dataclass(frozen=True)
class Setting:
    """A line of a table: the setting's full name, its default as YAML writes it, the comment beside it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Config:
    """A file of `configs/`: its defaults list, its settings, the comment at its head, its help.

    notes: setting of another file → what this one says of it, in a comment `# NAME: ...`.
    """

    name: str
    defaults: list
    settings: list[Setting]
    about: str
    help: dict
    notes: dict[str, str]


def read(path: Path) -> Config:
    text = path.read_text()
    data = yaml.safe_load(text) or {}
    lines = text.splitlines()
    root = yaml.compose(text)
    settings = list(_settings(root, "", lines)) if isinstance(root, yaml.MappingNode) else []
    top = " ".join(_comment_above(lines, _first_line(lines)))
    help_ = data.get("hydra", {}).get("help", {})
    return Config(path.stem, data.get("defaults", []), settings, top, help_, _notes(text))


def _notes(text: str) -> dict[str, str]:
    """The comments that explain settings by name: `# rank, compress_rate: what the file is expected to hold`."""
    found = {}
    for block in re.findall(r"(?m)^((?:# .*\n)+)", text):
        names, colon, meaning = " ".join(block.replace("# ", "").split()).partition(": ")
        if colon and re.fullmatch(r"[\w.]+(, [\w.]+)*", names):
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _first_line(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))


def _comment_above(lines: list[str], index: int) -> list[str]:
    found = []
    while index and lines[index - 1].lstrip().startswith("#"):
        index -= 1
        found.insert(0, lines[index].strip().lstrip("#").strip())
    return [line for line in found if not line.startswith("@package")]


def _settings(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Setting]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        comment = _beside(lines, value)
        above = _comment_above(lines, key.start_mark.line) if prefix else []
        if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            yield from _settings(value, f"{name}.", lines)
            continue
        default = lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        if value.start_mark.line != value.end_mark.line:
            default = yaml.serialize(value).strip()
        yield Setting(name, " ".join(default.split()), comment or " ".join(above))


def _beside(lines: list[str], value: yaml.Node) -> str:
    """The comment behind a value, on its line."""
    if value.end_mark.line >= len(lines):
        return ""
    _, mark, comment = lines[value.end_mark.line][value.end_mark.column :].partition("#")
    return comment.strip() if mark else ""


def _groups(config: Config) -> list[tuple[str, str, str]]:
    """(group as it is typed, folder, default choice) of a defaults list."""
    found = []
    for item in config.defaults:
        if not isinstance(item, dict):
            continue
        ((key, choice),) = item.items()
        if key.startswith("override "):
            continue
        found.append((key, key.split("@")[0], "null" if choice is None else str(choice)))
    return found


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;").replace("_", r"\_").replace("$", r"\$")


def _table(settings: list[Setting]) -> list[str]:
    rows = [f"| `{s.name}` | `{s.default or 'null'}` | {_cell(s.meaning)} |".replace("| `` |", "| |") for s in settings]
    return ["| setting | default | meaning |", "| --- | --- | --- |", *rows, ""]


def _is_group(folder: str) -> bool:
    return (CONFIGS / folder).is_dir()


def _command_page(config: Config) -> str:
    header = " ".join(str(config.help.get("header", "")).split())
    lines = [f"# {config.name}", "", _cell(header), ""]
    if examples := _examples(config.help):
        lines += ["```text", *examples, "```", ""]
    inherited = [s for item in config.defaults if isinstance(item, str) and item != "_self_" for s in _base(item)]
    own = {s.name: s for s in [*inherited, *config.settings]}
    own |= {name: replace(own[name], meaning=note) for name, note in config.notes.items() if name in own}
    lines += ["## Settings", "", *_table(list(own.values()))]
    if groups := [g for g in _groups(config) if _is_group(g[1])]:
        lines += ["## Groups", "", "`GROUP=CHOICE` picks one; `GROUP.SETTING=VALUE` changes a part of it.", ""]
        lines += ["| group | default | settings |", "| --- | --- | --- |"]
        for typed, folder, choice in groups:
            used = typed.split("@")[-1]
            lines.append(f"| `{typed}` | `{choice}` | [{used}](group-{folder}.md) |")
    return "\n".join([*lines, ""])


def _base(name: str) -> list[Setting]:
    path = CONFIGS / f"{name.lstrip('/')}.yaml"
    return read(path).settings if path.exists() else []


def _examples(help_: dict) -> list[str]:
    """The command lines at the end of a command's help."""
    return [line.strip() for line in str(help_.get("footer", "")).splitlines() if line.strip()]


def _group_page(folder: str, users: Iterable[str]) -> str:
    by = ", ".join(f"[{name}]({name}.md)" for name in users)
    lines = [f"# {folder}", "", f"A group of settings, of {by}.", ""]
    configs = {path: read(path) for path in sorted((CONFIGS / folder).glob("*.yaml"))}
    # Explained once in a group is enough.
    known = {s.name: s.meaning for config in configs.values() for s in config.settings if s.meaning}
    for path, config in configs.items():
        settings = [replace(s, meaning=s.meaning or known.get(s.name, "")) for s in config.settings]
        lines += [f"## {folder}={path.stem}", ""]
        if config.about:
            lines += [_cell(config.about), ""]
        if starts := [item for item in config.defaults if isinstance(item, str) and item != "_self_"]:
            lines += [f"Starts from `{', '.join(starts)}` and changes:", ""]
        if settings:
            lines += _table(settings)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Name of the page → its Markdown."""
    commands = {p.stem: read(p) for p in sorted(CONFIGS.glob("*.yaml")) if p.stem not in NO_COMMAND}
    users: dict[str, dict[str, None]] = {}  # in the order of the commands
    for name, config in commands.items():
        for _, folder, _ in _groups(config):
            if _is_group(folder):
                users.setdefault(folder, {})[name] = None
    found = {name: _command_page(config) for name, config in commands.items()}
    found |= {f"group-{folder}": _group_page(folder, users[folder]) for folder in sorted(users)}
    return found | {"index": _index(commands, sorted(users))}


def _index(commands: dict[str, Config], groups: list[str]) -> str:
    lines = [
        "# Settings",
        "",
        "These pages are made from `configs/`. A setting is given as `name=value` on the command line.",
        "A setting that is not listed for a command is refused by it.",
        "",
        "| command | does |",
        "| --- | --- |",
    ]
    for name, config in commands.items():
        header = " ".join(str(config.help.get("header", "")).split())
        lines.append(f"| [{name}]({name}.md) | {_cell(header)} |")
    lines += ["", "| group | choices |", "| --- | --- |"]
    for folder in groups:
        choices = [path.stem for path in sorted((CONFIGS / folder).glob("*.yaml"))]
        lines.append(f"| [{folder}](group-{folder}.md) | {', '.join(f'`{choice}`' for choice in choices)} |")
    hidden = ["", "```{toctree}", ":hidden:", ":caption: Commands", "", *commands, "```"]
    hidden += ["", "```{toctree}", ":hidden:", ":caption: Groups", "", *(f"group-{g}" for g in groups), "```", ""]
    return "\n".join(lines + hidden)


def write(folder: Path, made: dict[str, str]) -> None:
    """Write pages that changed, remove those that are no longer made."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in made:
            old.unlink()
    for name, text in made.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / FOLDER, pages()))
    return {"parallel_read_safe": True}
