"""Ranks and filters chosen together for one budget."""

import numpy as np
import pytest
import torch
from helpers.budgets import AS_MEASURED, OUTPUTS, fitted_error, literal_error
from helpers.networks import randomise_
from torch import nn

import norton
from norton import DecomposeOptions, InputError, PruneOptions, choose_ranks
from norton.budget.pruning_curves import lost_rows, pruning_curves_of
from norton.calibration import Metric
from norton.graph.plan import plan_of
from norton.pruning import Pruning


def widths(net):
    return {name: layer.weight.shape for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}


@pytest.mark.filterwarnings("ignore:a budget without")
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_joint_is_exact_and_no_worse(narrow, share):
    pruning = Pruning("l2", PruneOptions(min_filters=2))
    quick = DecomposeOptions(options={"starts": 1, "iterations": 3})
    joint = choose_ranks(narrow, macs=share, decomposition=quick, pruning=pruning)
    small = norton.decompose(narrow, joint.ranks, starts=1, iterations=1)
    small = norton.prune(small, joint.rates, **pruning.arguments())
    kept = norton.complexity(small).macs / norton.complexity(narrow).macs
    assert kept == joint.share and 0.99 * share <= kept <= share
    if share == 0.15:  # below what ranks alone can do
        assert any(joint.rates.values()) and joint.uniform is None
        with pytest.raises(
            InputError, match=r"macs=0\.15 is below the least possible: VGG16BN keeps 0\.\d+ at rank 1;"
        ):
            choose_ranks(narrow, macs=share, decomposition=quick)
        return
    alone = choose_ranks(narrow, macs=share, decomposition=quick)
    assert joint.error <= alone.error <= joint.uniform.error
    for name, (before, after) in joint.costs.items():
        assert before == norton.complexity(narrow).by_layer[name].macs
        assert after == norton.complexity(small).by_layer[name].macs


@pytest.mark.filterwarnings("ignore:a budget without")
@pytest.mark.parametrize("part", [0.2, 0.4])
def test_joint_is_no_worse_than_pruning_alone(narrow, part):
    """Budgets that are what a step of pruning leaves, on its way."""
    pruning = Pruning("l2", PruneOptions(min_filters=2))
    curves = pruning_curves_of(narrow, pruning)
    for name in curves.readers():
        curves.probe(name, None, 0)(narrow.get_submodule(name).weight.detach(), None)
    whole = norton.complexity(narrow)
    path = curves.path({name: cost.macs for name, cost in whole.by_layer.items()})
    level = path[round(part * len(path))][0]
    share = norton.complexity(curves.pruned(level)).macs / whole.macs
    quick = DecomposeOptions(options={"starts": 1, "iterations": 3})
    joint = choose_ranks(narrow, macs=share, decomposition=quick, pruning=pruning)
    assert joint.error <= curves.error(level) * (1 + 1e-9)


def test_what_readers_lose(toy, images):
    """Pruning is measured at the layers that read what goes, by zeros in their inputs."""
    pruning = Pruning("l2", PruneOptions(min_filters=1, compensate=None))
    joint = choose_ranks(toy, images, macs=0.25, decomposition=OUTPUTS, pruning=pruning)
    assert any(joint.rates.values())
    rates = {name: rate for name, rate in joint.rates.items() if rate}
    keep = plan_of(norton.prune(toy, rates, criterion="l2", options=norton.PruneOptions(min_filters=1)))[-1]["keep"]
    for writer, reader in (("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "fc")):
        weight = toy.get_submodule(reader).weight.detach()
        gone = weight.clone()
        gone[:, keep.get(writer, slice(None))] = 0
        own = joint.ranks.get(reader)
        error = fitted_error(toy, reader, own, images, **AS_MEASURED) if own else 0.0
        assert joint.errors[reader] == pytest.approx(
            error + literal_error(toy, reader, gone, images), rel=2e-3, abs=1e-6
        )


def test_compensation_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    rows, x = torch.randn(4, 9, generator=generator).double(), torch.randn(200, 9, generator=generator).double()
    x = x @ torch.randn(9, 9, generator=generator).double()
    lost = torch.tensor([0, 1, 0, 0, 1, 1, 0, 0, 0]).bool()
    metric = Metric([x.T @ x / len(x)])
    best = torch.linalg.lstsq(x[:, ~lost], x @ rows.T).solution.T
    literal = (x @ rows.T - x[:, ~lost] @ best.T).square().mean(0)
    assert torch.allclose(metric.squares(lost_rows(rows, lost, metric, refit=True)), literal)
    assert torch.allclose(
        metric.squares(lost_rows(rows, lost, metric, refit=False)), (x[:, lost] @ rows[:, lost].T).square().mean(0)
    )


def test_pruning_curves_cut_what_prune_does():
    """Where shortcuts bind streams too: any mixture of rates has the shapes and filters of `norton.prune`."""
    net = randomise_(norton.build("resnet_56"))
    curves = pruning_curves_of(net, Pruning("l1", PruneOptions(min_filters=4)))
    rng = np.random.default_rng(0)
    for level in (curves.most_pruned, tuple(map(int, rng.integers(0, 9, len(curves.groups))))):
        small = norton.prune(net, curves.rates(level), criterion="l1", options=norton.PruneOptions(min_filters=4))
        own = curves.pruned(level)
        assert all(
            torch.equal(a, b) for a, b in zip(own.state_dict().values(), small.state_dict().values(), strict=True)
        )
    costs = {name: cost.macs for name, cost in norton.complexity(net).by_layer.items()}
    curves.errors = {"fc": rng.random((len(curves.groups), 9)).cumsum(1)}
    path = curves.path(costs)
    left = [share for _, share in path]
    assert (
        path[0] == (curves.unpruned, 1.0) and path[-1][0] == curves.most_pruned and left == sorted(left, reverse=True)
    )
    for place in (len(path) // 3, len(path) - 1):  # the model is near the truth
        level, share = path[place]
        assert norton.complexity(curves.pruned(level)).macs / norton.complexity(net).macs == pytest.approx(
            share, abs=0.03
        )
