"""The shape of the code: files and functions of a size one can read, and no circle of imports between files."""

import ast
from graphlib import TopologicalSorter

import grimp
import pytest
from helpers.repository import REPOSITORY

FOLDERS = ("norton", "experiments", "detection", "hydra_plugins", "benchmarks", "tests")
FILES = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py"))
FILES += sorted(REPOSITORY.glob("*.py"))
KERNELS = ("norton/deployment/triton_cp.py", "_kernel")  # file and end of names: Triton's functions cannot be split
MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60


def test_no_file_is_too_long():
    lines = {str(path.relative_to(REPOSITORY)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > MOST_LINES_OF_A_FILE} == {}


def test_no_function_is_too_long():
    found = {}
    for path in FILES:
        name = str(path.relative_to(REPOSITORY))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if name == KERNELS[0] and node.name.endswith(KERNELS[1]):
                    continue
                count = node.end_lineno - node.lineno + 1
                if count > MOST_LINES_OF_A_FUNCTION:
                    found[f"{name}:{node.name}"] = count
    assert found == {}


@pytest.mark.parametrize("package", ["norton", "experiments", "detection"])
def test_no_circle_of_files(package):
    graph = grimp.build_graph(package, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which lists the circle
