"""Layers that read what values choose, and inputs that do not vary."""

import pytest
import torch
from torch import nn

import norton
from norton.calibration import Metric

pytestmark = pytest.mark.quick


class Found(nn.Module):
    """Reads the map at the positions where its first channel is high, as many as there are."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3))
        self.head = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x):
        rows = self.trunk(x).permute(0, 2, 3, 1).flatten(0, 2)
        return self.head(rows[rows[:, 0] > 0])


def test_what_values_choose_is_not_fitted():
    """A cut network chooses other rows, which say nothing of what a layer gave for those of before."""
    torch.manual_seed(0)
    net, images = Found().double(), torch.randn(8, 3, 12, 12, dtype=torch.float64)
    how = {"criterion": "l2", "example": images[:2]}
    cut = norton.prune(net, 0.5, options=norton.PruneOptions(min_filters=1), **how)
    options = norton.PruneOptions(min_filters=1, compensate="outputs")
    with pytest.warns(UserWarning, match="called with what values of the network choose"):
        small = norton.prune(net, 0.5, options=options, images=images, **how)
    assert small.head[2].in_features == 6
    for layer in (0, 2):
        assert torch.equal(small.head[layer].weight, cut.head[layer].weight)
    before, without, now = (each.trunk(images).detach() for each in (net, cut, small))
    assert (now - before).norm() < 0.9 * (without - before).norm()


def test_what_rounding_leaves_of_no_variance_is_solved():
    """A matrix whose least entry is below zero counts as one with the ridge there."""
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    rows = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    broken, whole = (turn @ torch.diag(torch.tensor([2.0, 1.0, least]).double()) @ turn.T for least in (-1e-9, 1e-3))
    torch.testing.assert_close(Metric([broken], level=1e-3).solve(rows), rows @ torch.linalg.inv(whole))
