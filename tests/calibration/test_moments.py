"""Moments of a layer's inputs, by unfolding them."""

import pytest
import torch
import torch.nn.functional as F
from helpers.geometries import convolutions
from helpers.metrics import noise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from norton.calibration.input_moments import count_positions, gather_moments, output_rows, patches
from norton.graph.layers import weight_of

pytestmark = pytest.mark.quick

GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2)},
    {"kernel_size": 3, "dilation": 2, "padding": "same"},
    {"kernel_size": 2, "padding": "same", "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    {"kernel_size": 1},
    {"kernel_size": 3, "padding": "valid"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patches_times_filters_are_the_outputs(geometry):
    layer = nn.Conv2d(3, 4, **geometry, bias=False).double()
    x = noise(2, 3, 9, 8)
    rows = patches(layer, x) @ layer.weight.flatten(1).T
    torch.testing.assert_close(rows, output_rows(layer, layer(x)))
    chosen = torch.tensor([0, 3, 7])
    torch.testing.assert_close(
        patches(layer, x, chosen) @ layer.weight.flatten(1).T, output_rows(layer, layer(x), chosen)
    )


def test_moments_are_those_of_all_patches():
    layer = nn.Conv2d(3, 4, 3, padding=1).double()
    batches = [noise(2, 3, 5, 6, seed=1) + 1, noise(3, 3, 5, 6, seed=2)]
    found = gather_moments(layer, iter(batches), (F.conv2d(x, layer.weight, padding=1) for x in batches))
    rows = F.unfold(torch.cat(batches), 3, padding=1).mT.flatten(0, 1)
    y = rows @ layer.weight.flatten(1).T
    torch.testing.assert_close(found.second[0], sum(torch.outer(x, x) for x in rows) / len(rows))
    torch.testing.assert_close(found.mean, rows.mean(0))
    torch.testing.assert_close(found.cross, y.T @ rows / len(rows))
    torch.testing.assert_close(found.output_mean, y.mean(0))
    centred = found.centred()
    torch.testing.assert_close(centred.second[0], torch.cov(rows.T, correction=0))
    torch.testing.assert_close(centred.cross, (y - y.mean(0)).T @ (rows - rows.mean(0)) / len(rows))
    assert found.rows == len(rows)


def test_blocks_are_those_of_the_whole_matrix():
    layer = nn.Conv2d(5, 2, 3).double()
    x = noise(4, 5, 6, 6)
    whole, parts = gather_moments(layer, [x]).centred(), gather_moments(layer, [x], blocks=2).centred()
    assert [len(block) for block in parts.second] == [27, 18]  # whole channels
    torch.testing.assert_close(parts.second[0], whole.second[0][:27, :27])
    torch.testing.assert_close(parts.second[1], whole.second[0][27:, 27:])


def test_drawn_positions_are_of_the_map_and_estimate_the_moments():
    layer = nn.Conv2d(2, 2, 3, padding=1).double()
    batches = [noise(50, 2, 8, 8, seed=seed).relu() for seed in range(4)]
    whole, drawn = gather_moments(layer, batches), gather_moments(layer, batches, positions=16)
    assert (whole.rows, drawn.rows) == (200 * 64, 200 * 16)
    assert 0 < (whole.second[0] - drawn.second[0]).norm() < 0.1 * whole.second[0].norm()
    assert torch.equal(drawn.second[0], gather_moments(layer, batches, positions=16).second[0])


def test_linear_layers_have_moments_too():
    layer, x = nn.Linear(6, 3).double(), noise(4, 5, 6)
    found = gather_moments(layer, [x], [x @ layer.weight.T])
    torch.testing.assert_close(found.second[0], x.flatten(0, 1).T @ x.flatten(0, 1) / 20)
    torch.testing.assert_close(found.cross, layer.weight @ found.second[0])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.one_of(convolutions(), convolutions(transposed=True)), st.data())
def test_patches_of_any_convolution(case, data):
    layer, x = case
    layer.bias = None
    y, filters = layer(x), weight_of(layer).flatten(1).chunk(layer.groups)
    assert count_positions(layer, x) == y[0, 0].numel()
    chosen = torch.tensor(sorted(data.draw(st.sets(st.integers(0, y[0, 0].numel() - 1), min_size=1, max_size=5))))
    for places in (None, chosen):
        parts = patches(layer, x, places).chunk(layer.groups, 1)
        rows = torch.cat([part @ own.T for part, own in zip(parts, filters, strict=True)], 1)
        torch.testing.assert_close(rows, output_rows(layer, y, places))


def test_a_transposed_layer_that_is_called_with_output_size():
    layer, x = nn.ConvTranspose2d(4, 3, 3, 2, padding=1, bias=False).double(), noise(6, 4, 5, 5)
    target = layer(x, output_size=(10, 9))
    found = gather_moments(layer, [x], [target])
    assert found.rows == 6 * 10 * 9 and layer.output_padding == (0, 0)
    filters = weight_of(layer).flatten(1)
    torch.testing.assert_close(found.cross, filters @ found.second[0])
    torch.testing.assert_close(found.output_mean, filters @ found.mean)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("blocks", [1, 2])
def test_moments_of_a_grouped_layer_are_those_of_each_group(kind, blocks):
    torch.manual_seed(0)
    layer, x = kind(6, 4, 3, groups=2, bias=False).double(), noise(5, 6, 6, 7)
    target = layer(x) + noise(*layer(x).shape, seed=1)
    found = gather_moments(layer, [x], [target], blocks=blocks)
    for group, own in enumerate(found.by_group()):
        alone = kind(3, 2, 3, bias=False).double()
        alone.weight.data = layer.weight.chunk(2)[group].detach()
        wanted = gather_moments(alone, [x.chunk(2, 1)[group]], [target.chunk(2, 1)[group]], blocks=blocks)
        for moments, other in ((own, wanted), (found.centred().by_group()[group], wanted.centred())):
            torch.testing.assert_close(moments.second, other.second)
            torch.testing.assert_close(moments.cross, other.cross)
            torch.testing.assert_close(moments.mean, other.mean)
            torch.testing.assert_close(moments.output_mean, other.output_mean)
            assert moments.rows == other.rows
    torch.testing.assert_close(found.mean_outputs(weight_of(layer)), layer(x).transpose(0, 1).flatten(1).mean(1))
