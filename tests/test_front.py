"""`import norton`: what it lists, and that it costs nothing until it is used."""

import subprocess
import sys

import pytest

import norton
from norton.common.errors import InputError
from norton.common.extras import extra_of, optional

EVERYTHING = {name: getattr(norton, name) for name in norton.__all__}  # a name that moved: see norton/__init__.pyi


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy():
    run("import sys, norton; assert not {'torch', 'numpy', 'hydra', 'rich'} & sys.modules.keys()")


def test_everything_listed_is_there():
    assert set(norton.__all__) == set(dir(norton))
    names = {}
    exec("from norton import *", names)
    assert set(norton.__all__) <= names.keys()
    assert callable(names["decompose"]) and names["pruning"].prune is names["prune"]


def test_unknown_name():
    with pytest.raises(AttributeError, match="norton"):
        norton.no_such_name  # noqa: B018


def test_missing_dependency_names_its_extra(monkeypatch):
    assert [extra_of(name) for name in ("onnx.helper", "plotly", "torch", "no_such_module")] == [
        "export",
        "experiments",
        None,
        None,
    ]
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    said = "this needs pycocotools, which is not installed: pip install 'norton[detection]'"
    with pytest.raises(InputError) as error, optional():
        import pycocotools  # noqa: F401
    assert str(error.value) == said
    with pytest.raises(ModuleNotFoundError), optional():
        import no_such_module  # noqa: F401
