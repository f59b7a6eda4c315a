"""The defaults of Python, of the option classes and of the configs are the same."""

import inspect
from dataclasses import asdict
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch import nn

import norton
from norton.decomposition import DECOMPOSITIONS, cp_filters
from norton.decomposition.options import DecomposeOptions, method_options
from norton.pruning import CRITERIA, PruneOptions, Pruning

pytestmark = pytest.mark.quick

CONFIGS = Path(__file__).parents[2] / "configs"


def settings(file):
    """A config as it is written, without what the others of its group get from their defaults list."""
    return OmegaConf.to_container(OmegaConf.load(CONFIGS / file), resolve=False)


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


@pytest.mark.parametrize("method", sorted(DECOMPOSITIONS))
def test_each_decomposition(method):
    found = settings(f"decomposition/{method}.yaml")
    assert found == {**asdict(DecomposeOptions(method)), "options": method_options(method)}


def test_decompose():
    known, own = defaults(norton.decompose), DecomposeOptions().arguments()
    assert known.items() >= own.items()
    assert method_options("cp").items() <= defaults(cp_filters).items()


def test_prune():
    found = settings("pruning/pabs.yaml")
    assert found == {"criterion": "pabs", "seed": "${seed}", **asdict(PruneOptions())}
    assert defaults(norton.prune).items() >= Pruning().arguments().items()


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_each_criterion(criterion):
    found = settings(f"pruning/{criterion}.yaml")
    if criterion != "pabs":
        assert found == {"defaults": ["pabs"], "criterion": criterion}


def test_options_of_another_kind_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    for wrong in (
        lambda: norton.prune(net, 0.5, options={"selection": "exact"}),
        lambda: norton.choose_ranks(net, macs=0.5, decomposition="cp"),
        lambda: norton.choose_ranks(net, macs=0.5, pruning=norton.PruneOptions()),
        lambda: norton.DecomposeOptions(options=None),
        lambda: norton.DecomposeOptions(skip=3),
    ):
        with pytest.raises(norton.InputError, match="it must be a"):
            wrong()
