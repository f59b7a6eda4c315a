"""Fixtures of all tests."""

import hashlib
import os

import pytest
import torch

from norton.data.datasets import clutter
from norton.deployment import search
from norton.graph import tracing

# On a busy machine two threads wait for each other longer than they compute, on tensors this small.
torch.set_num_threads(int(os.environ.get("NORTON_TEST_THREADS", "1")))


# Their tests run whole commands: begun last, one of them would keep a single process busy at the end.
LONGEST = ("docs", "experiments", "cli", "detection", "training")


def pytest_collection_modifyitems(items):
    rooms = {item: item.path.parent.name for item in items}
    items.sort(key=lambda item: LONGEST.index(rooms[item]) if rooms[item] in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Whatever is chosen in deploying has to be right; how well it was timed does not matter in tests."""
    monkeypatch.setattr(search, "DEFAULT_BUDGET", search.SearchBudget(layer_seconds=0, trials=1))


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """What fails inside of a rule keeps channels whole for users, and shows in tests."""
    monkeypatch.setattr(tracing, "RAISES_FAULTS", True)


@pytest.fixture(scope="session")
def pictures():
    """Which digits of which split → the pictures that `clutter` makes of them."""
    return {}


@pytest.fixture(autouse=True)
def rendered_once(monkeypatch, pictures):
    """Each command would draw thousands of the same pictures: they are drawn once in a process."""
    render = clutter.render

    def kept(digits, split, seed):
        key = hashlib.sha256(digits.numpy().tobytes()).hexdigest(), split, seed
        if key not in pictures:
            pictures[key] = render(digits, split, seed)
        return pictures[key].clone()

    monkeypatch.setattr(clutter, "render", kept)


@pytest.fixture
def images():
    """Four random images of a size."""

    def make(size: int = 32) -> torch.Tensor:
        return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))

    return make
