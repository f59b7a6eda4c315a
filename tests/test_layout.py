"""The tests mirror the rooms, and each room has a few in the inner loop."""

import ast
from pathlib import Path

import pytest
from helpers.repository import REPOSITORY

pytestmark = pytest.mark.quick

TESTS = REPOSITORY / "tests"
PACKAGES = ("norton", "experiments", "detection")
ROOMS = {path.parent.name for path in (REPOSITORY / "norton").glob("*/__init__.py")} | set(PACKAGES[1:])
BESIDE = {"helpers", "docs"}  # folders of tests that are of no package
FILES = sorted(TESTS.rglob("*.py"))


def named(folder):
    return {path.parent.name for path in folder.glob("*/*.py")}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


def test_tests_mirror_the_rooms():
    assert named(TESTS) == ROOMS | BESIDE


@pytest.mark.parametrize("room", sorted(ROOMS))
def test_each_room_is_in_the_inner_loop(room):
    """A file of its tests is quick, and it imports what it tests."""
    package = room if room in PACKAGES else f"norton.{room}"
    quick = [path for path in (TESTS / room).glob("test_*.py") if "mark.quick" in path.read_text()]
    names = {name for path in quick for name in imported(path)}
    assert any(name == package or name.startswith(f"{package}.") for name in names), quick


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_files_are_short_and_import_no_other_test(path):
    assert len(path.read_text().splitlines()) <= 400
    assert not [name for name in imported(path) if name.rpartition(".")[2].startswith(("test_", "conftest"))]
