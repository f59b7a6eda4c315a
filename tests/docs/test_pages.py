"""The code blocks of README and site run, page by page, in a temporary folder that looks like a checkout.

Blocks of `python` and `sh` run in their order; those of any other language, such as `console`, are only shown.  A block
whose first line is the comment `# path/to/file.py` (or .yaml) is a file, and is written there.  Comments in a page:

    <!-- skip: next if(quick, reason="two minutes") -->   the block runs in the slow set alone
    <!-- sizes: training.epochs=1 data.copies=[1,1,1] -->  what the next block of commands gets here in addition
    <!-- exit code: 2 -->   of the last command of the next block; 0 otherwise
"""

import importlib
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest

import pytest
import torch
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
Program = tuple[Callable, str, list[str]]  # of runpy; name; arguments
CODE = re.compile(r"<!-- exit code: (\d) -->")


class Reader:
    """Someone who follows a page, in a folder of their own."""

    def __init__(self, folder: Path, adds_files: bool, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.adds_files, self.monkeypatch = folder, adds_files, monkeypatch
        for name in SCRIPTS:  # a link would find the modules beside its target
            shutil.copy(REPOSITORY / name, folder)
        for name in CHECKOUT:
            if adds_files and name in CHANGED:
                shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (REPOSITORY / name).exists():
                (folder / name).symlink_to(REPOSITORY / name)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(str(folder))  # the reader's own modules
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        monkeypatch.setattr(DATASETS, "_methods", dict(DATASETS._methods))  # readers register their own
        self.forget()

    def forget(self) -> None:
        """Of what comments say of the next block."""
        self.extra: list[str] = []
        self.code = 0

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

    def exit_code(self, example: Example) -> None:
        self.code = int(example.parsed)

    def sh(self, example: Example) -> None:
        lines = [shlex.split(line, comments=True) for line in example.parsed.replace("\\\n", " ").splitlines()]
        *others, last = [words + self.extra for words in lines if words]
        for words in others:
            assert self._run(words) == 0, shlex.join(words)
        assert self._run(last) == self.code, shlex.join(last)
        self.forget()

    def _run(self, words: list[str]) -> int | str:
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            self.monkeypatch.setenv(name, value)
        start = None if self.adds_files else self._ours(words)
        if start is None:
            own = self.adds_files and not torch.cuda.is_available()  # CUDA cannot be used in a fork
            program = self._ours(words) or self._script(words) if own else None
            return self._forked(*program) if program else self._started(words)
        # In this process, which saves the seconds of importing.
        run, name, arguments = start
        self.monkeypatch.setattr(sys, "argv", [name, *arguments])
        try:
            run(name, run_name="__main__")
        except SystemExit as done:
            return done.code or 0
        finally:
            logging.disable(logging.NOTSET)
        return 0

    @staticmethod
    def _started(words: list[str]) -> int:
        words = [sys.executable if word == "python" else word for word in words]
        return subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode

    def _forked(self, run: Callable, name: str, arguments: list[str]) -> int:
        """In a copy of this process, which has imported all but the reader's own modules."""
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        code: int | str = 1
        try:
            for module in [module for module in sys.modules if module.split(".")[0] in CHECKOUT]:
                del sys.modules[module]
            assert Path(importlib.import_module("norton").__file__ or "").is_relative_to(self.folder)
            sys.argv = [name, *arguments]
            run(name, run_name="__main__")
            code = 0
        except SystemExit as done:
            code = done.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code if isinstance(code, int) else 1)

    @staticmethod
    def _script(words: list[str]) -> Program | None:
        """How a script that the reader wrote is run likewise."""
        return (runpy.run_path, words[1], words[2:]) if words[0] == "python" and words[1].endswith(".py") else None

    @staticmethod
    def _ours(words: list[str]) -> Program | None:
        """How a program of this project is run without a process of its own."""
        if any(word.startswith("trainer.devices=") for word in words):
            return None  # the devices' processes are copies of this one
        if words[0] == "norton":
            return runpy.run_module, "norton", words[1:]
        if words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("experiments", "detection", "norton"):
            return runpy.run_module, words[2], words[3:]
        if words[0] == "python" and words[1] in SCRIPTS:
            return runpy.run_path, words[1], words[2:]
        return None


def comments(pattern: re.Pattern, evaluate: Callable) -> Callable:
    return lambda document: [Region(m.start(), m.end(), m[1], evaluate) for m in pattern.finditer(document.text)]


def read(page: str, reader: Reader, quick: bool) -> Document:
    parsers = [
        CodeBlockParser("python", reader.python),
        CodeBlockParser("yaml", reader.yaml),
        CodeBlockParser("sh", reader.sh),
        SkipParser(),
        *(comments(*pair) for pair in ((SIZES, reader.sizes), (CODE, reader.exit_code))),
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
            reader.forget()
        except Exception as error:
            raise AssertionError(f"{page}:{example.line}: {error}") from error


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch):
    follow(page, tmp_path, monkeypatch, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if "if(quick" in (REPOSITORY / page).read_text()])
def test_page_with_its_long_commands(page, tmp_path, monkeypatch):
    follow(page, tmp_path, monkeypatch, quick=False)
