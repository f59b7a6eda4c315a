"""The code blocks of README and site run, page by page, in a temporary folder that looks like a checkout.

Blocks of `python` and `sh` run in their order; those of any other language, such as `console`, are only shown.  A block
whose first line is the comment `# path/to/file.py` (or .yaml) is a file, and is written there.  Comments in a page:

    <!-- skip: next if(quick, reason="two minutes") -->   the block runs in the slow set alone
    <!-- sizes: training.epochs=1 data.copies=[1,1,1] -->  what the next block of commands gets here in addition
"""

import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

import pytest
from helpers.repository import REPOSITORY
from sybil import Document, Example, Region, Sybil
from sybil.parsers.myst import CodeBlockParser, SkipParser

from norton.data import DATASETS

GENERATED = ("docs/reference/api", "docs/reference/settings")
ALL = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [str(path.relative_to(REPOSITORY)) for path in ALL]
PAGES = [
    page
    for page in PAGES
    if not page.startswith(GENERATED) and re.search(r"^\s*```(python|sh)$", (REPOSITORY / page).read_text(), re.M)
]
CHECKOUT = ("checkpoints", "experiments", "detection", "benchmarks", "tests", "norton", "configs")
CHANGED = ("norton", "configs")  # copied where a page adds files to them
SCRIPTS = ("decompose.py", "prune.py", "evaluate.py", "complexity.py")
FILE = re.compile(r"# ([\w./]+\.(?:py|yaml))\n")
SIZES = re.compile(r"<!-- sizes: (.*?) -->")


class Reader:
    """Someone who follows a page, in a folder of their own."""

    def __init__(self, folder: Path, adds_files: bool, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.adds_files, self.monkeypatch = folder, adds_files, monkeypatch
        for name in (*CHECKOUT, *SCRIPTS):
            if adds_files and name in CHANGED:
                shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (REPOSITORY / name).exists():
                (folder / name).symlink_to(REPOSITORY / name)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))  # the reader's own modules
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(DATASETS, "_methods", dict(DATASETS._methods))  # readers register their own
        self.extra: list[str] = []

    def python(self, example: Example) -> None:
        if not self._written(example.parsed):
            code = compile("\n" * example.line + example.parsed, example.path, "exec")
            exec(code, example.namespace)

    def yaml(self, example: Example) -> None:
        self._written(example.parsed)

    def _written(self, text: str) -> bool:
        if match := FILE.match(text):
            path = self.folder / match[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return bool(match)

    def sizes(self, example: Example) -> None:
        self.extra = shlex.split(example.parsed)

    def sh(self, example: Example) -> None:
        extra, self.extra = self.extra, []
        for line in example.parsed.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                self._run(words, extra)

    def _run(self, words: list[str], extra: list[str]) -> None:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            self.monkeypatch.setenv(name, value)
        words = words + extra
        if self.adds_files or not self._here(words):
            words = [sys.executable if word == "python" else word for word in words]
            done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"

    def _here(self, words: list[str]) -> bool:
        """Run one of this project's programs in this process, which saves the seconds of importing."""
        if words[0] == "norton":
            start, name, arguments = runpy.run_module, "norton", words[1:]
        elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("experiments", "detection", "norton"):
            start, name, arguments = runpy.run_module, words[2], words[3:]
        elif words[0] == "python" and words[1] in SCRIPTS:
            start, name, arguments = runpy.run_path, words[1], words[2:]
        else:
            return False
        self.monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = 0
        try:
            start(name, run_name="__main__")
        except SystemExit as done:
            code = done.code
        finally:
            logging.disable(logging.NOTSET)
        assert not code, shlex.join(words)
        return True


def read(page: str, reader: Reader, quick: bool) -> Document:
    parsers = [
        CodeBlockParser("python", reader.python),
        CodeBlockParser("yaml", reader.yaml),
        CodeBlockParser("sh", reader.sh),
        SkipParser(),
        lambda document: [Region(m.start(), m.end(), m[1], reader.sizes) for m in SIZES.finditer(document.text)],
    ]
    document = Sybil(parsers=parsers).parse(REPOSITORY / page)
    document.namespace.update(quick=quick, __name__="page")
    return document


def follow(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, quick: bool) -> None:
    text = (REPOSITORY / page).read_text()
    adds_files = bool(re.search(r"```(?:python|yaml)\n# (?:norton|configs)/", text))
    reader = Reader(folder, adds_files, monkeypatch)
    for example in read(page, reader, quick).examples():
        try:
            example.evaluate()
        except SkipTest:
            reader.extra = []
        except Exception as error:
            raise AssertionError(f"{page}:{example.line}: {error}") from error


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    follow(page, tmp_path, monkeypatch, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "if(quick" in (REPOSITORY / page).read_text()])
def test_page_with_its_long_commands(page, tmp_path, monkeypatch):
    follow(page, tmp_path, monkeypatch, quick=False)
