"""Every decomposition comes nearer in the metric than its fit to the weights."""

import pytest
import torch
from helpers.metrics import noise, some_metric
from torch import nn

from norton.decomposition import DECOMPOSITIONS
from norton.graph.layers import as_dense


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("method", sorted(DECOMPOSITIONS))
def test_every_method_comes_nearer_in_the_metric(method, padding):
    conv = nn.Conv2d(6, 5, 1 if method == "svd" else 3, padding=0 if method == "svd" else padding).double()
    conv.weight.data = noise(*conv.weight.shape)
    decomposition = DECOMPOSITIONS[method]
    ranks = [min(2, full) for full in decomposition.full_rank(conv)]
    layer = decomposition.from_conv(conv, ranks if len(ranks) > 1 else ranks[0], name="conv")
    metric = some_metric(conv.weight[0].numel())

    def error() -> float:
        return metric.squares((conv.weight - layer.composed_weight()).detach().flatten(1)).sum().item()

    before = error()
    layer.requires_grad_(False)
    layer.fit_outputs_(conv.weight.detach(), metric, 2)
    assert error() < 0.99 * before
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    dense = as_dense(layer)
    torch.testing.assert_close(dense(noise(2, 6, 5, 5)), layer(noise(2, 6, 5, 5)))


def test_svd_is_the_best_of_its_rank():
    weight, metric = noise(5, 8), some_metric(8)
    linear = nn.Linear(8, 5).double()
    linear.weight.data = weight
    layer = DECOMPOSITIONS["svd"].from_conv(linear, 2)
    layer.fit_outputs_(weight, metric, 1)
    found = metric.squares(weight - layer.composed_weight().detach()).sum()
    root = torch.linalg.cholesky(metric.blocks[0])
    torch.testing.assert_close(found, torch.linalg.svdvals(weight @ root)[2:].square().sum())
