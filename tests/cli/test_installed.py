"""The package as a wheel in another environment: commands run from another folder, and bring their settings along."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest
from helpers.repository import REPOSITORY

SOURCES = (
    "norton",
    "experiments",
    "detection",
    "hydra_plugins",
    "configs",
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
)


def run(*words, folder):
    """Run a command in a folder; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An environment with the wheel installed; other packages are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "source").mkdir()
    for name in SOURCES:  # a copy: building leaves files behind
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source", folder=folder)
    (wheel,) = folder.glob("norton-*.whl")
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv", with_pip=False)
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel, folder=folder)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # Listed here, the .pth of an editable norton among them is not followed.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return packages


@pytest.fixture
def norton(environment, tmp_path):
    """Run the installed `norton` from an empty folder."""
    program = environment.parents[2] / "bin" / "norton"
    return lambda *words: run(program, *words, folder=tmp_path)


# Commands in forks of a process that has imported what they need, as the installed `norton` begins them.
IN_FORKS = """
import os, runpy, sys
import norton.cli.commands.decompose, norton.cli.pictures, norton.data.datamodule
program, *commands = sys.argv[1:]
for command in commands:
    if not (child := os.fork()):
        sys.argv = [program, *command.split()]
        runpy.run_path(program, run_name="__main__")
        sys.exit()
    if os.waitpid(child, 0)[1]:
        sys.exit(f"failed: {command}")
"""


def test_commands_elsewhere(environment, norton, tmp_path):
    before = {path for path in environment.rglob("*")}
    assert "complexity" in norton("--help")
    counted = norton("complexity", "model=resnet_56", "by_layer=false")
    assert "MACs    127087242" in counted
    checkpoint = REPOSITORY / "checkpoints" / "resnet_56_clutter.pt"
    python, program = (environment.parents[2] / "bin" / name for name in ("python", "norton"))
    decompose = f"decompose checkpoint={checkpoint} rank=1 calibration.images=null out=small"
    said = run(python, "-c", IN_FORKS, program, decompose, "paper_tables table=resnet_56", folder=tmp_path)
    decomposed, tables = said.split("written to small/")
    assert (tmp_path / "small" / "model.pt").exists()
    assert "paper" in tables and "paper" not in decomposed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "small"]
    assert sorted(path.name for path in (tmp_path / "outputs").iterdir()) == ["complexity", "paper_tables"]
    assert {path for path in environment.rglob("*")} == before


def test_it_is_the_wheel_that_runs(environment, tmp_path):
    python = environment.parents[2] / "bin" / "python"
    code = (
        "import norton, experiments, norton.cli.program as p; print(norton.__file__, experiments.__file__, p.CONFIGS)"
    )
    paths = run(python, "-c", code, folder=tmp_path).split()
    assert all(path.startswith(str(environment)) for path in paths)


def test_the_wheel_brings_all_files(environment):
    places = {name: environment / name for name in ("norton", "experiments", "detection")}
    places |= {"configs": environment / "norton" / "configs"}
    for folder, place in places.items():
        ours = files(REPOSITORY / folder)
        missing = {name for name in ours if not (place / name).exists()}
        assert len(ours) > 10 and missing <= {"paper/README.md", "paper/fill.py"}


def files(folder):
    """The names of the files in a folder, but compiled ones."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*.*") if "__pycache__" not in path.parts}
