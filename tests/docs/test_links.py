"""What the documents name exists: files of the repository, names of the library, commands that must not get lost."""

import importlib
import re

import pytest
from helpers.repository import REPOSITORY

PAGES = [
    REPOSITORY / "README.md",
    *(
        p
        for p in sorted((REPOSITORY / "docs").rglob("*.md"))
        if p.parent.name not in ("api", "settings") and "_build" not in p.parts
    ),
]
FOLDERS = "norton|configs|experiments|detection|benchmarks|checkpoints|tests|docs"
PATHS = re.compile(rf"`((?:{FOLDERS})/[\w./-]+|\w+\.py)`")
NAMES = re.compile(r"`((?:norton|detection)(?:\.\w+)+)(?=[`(])")
LINKS = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
GENERATED = re.compile(r"(^|/)(settings|api)/")  # by `make docs`, which checks these links
WRITTEN = {"linf.py", "reduce.py", "run_onnx.py", "mynets.py", "__init__.py"}  # by readers, as the pages tell them


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_files_and_names_exist(page):
    text = page.read_text()
    paths = {path for path in PATHS.findall(text) if path not in WRITTEN}
    assert not [path for path in paths if not (REPOSITORY / path).exists()]
    links = [link for link in LINKS.findall(text) if not GENERATED.search(link)]
    assert not [link for link in links if not (page.parent / link).exists()]
    assert not [name for name in NAMES.findall(text) if not _resolves(name)]


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


def test_no_old_command_is_lost():
    everything = " ".join(" ".join(_unquoted(page.read_text()).replace("\\|", "|").split()) for page in PAGES)
    listed = (REPOSITORY / "tests" / "docs" / "old_commands.txt").read_text().splitlines()
    assert not [command for command in listed if _unquoted(command) not in everything]


def _unquoted(text: str) -> str:
    """Which words a shell needs quoted is not what this is about."""
    return text.replace("'", "")
