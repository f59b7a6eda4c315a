"""Sweeps of small points."""

import pytest
from helpers.commands import Silent, run_here
from helpers.sweeps import GRID, TINY


@pytest.fixture
def sweep(monkeypatch, capsys):
    """Run a sweep of small points in this process; returns exit code, stdout, stderr."""

    def start(folder, more=GRID):
        return run_here(f"python -m experiments.ablation {TINY} out={folder} {more}", monkeypatch, capsys)

    return start


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of four points with fine-tuning, undisturbed."""
    folder = tmp_path_factory.mktemp("sweep") / "a"
    with pytest.MonkeyPatch.context() as patch:
        command = f"python -m experiments.ablation {TINY} out={folder} {GRID} training=clutter training.epochs=1"
        assert run_here(command, patch, Silent())[0] == 0
    return folder
