"""Derived layers, layers as functions and what moves channels about: followed to the bit, or left whole."""

import pytest
import torch
from helpers.cutting import CHOICES, dead_outputs, outputs_without_offsets, pruned, wired
from helpers.derived_layers import Conv3, Norm, Padded
from helpers.followed import FOLLOWED

import norton
from norton.graph.layers import torch_kind

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name):
    net, wiring, widths = wired(FOLLOWED, name)
    x = torch.randn(3, *(net.input_size or (3, 16, 16)), dtype=torch.float64)
    if not widths:
        return
    for choice in CHOICES:
        small, keep = pruned(net, wiring, choice)
        expected = dead_outputs(net, wiring, keep, x)
        assert expected.std() > 1e-3
        with torch.no_grad():
            y = outputs_without_offsets(small, x)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-9 * expected.abs().max().item())
        small.train()(x).sum().backward()
        again = norton.wiring_of(small)
        assert {again.name(axis): again.width(axis) for axis in again.writers if axis not in again.frozen} == {
            wiring.name(axis): len(kept) for axis, kept in keep.items()
        }


def test_a_norm_over_channels_is_named():
    wiring = norton.wiring_of(FOLLOWED["normalised over channels and rows"][0]())
    assert "it normalises over channels and other dimensions together" in wiring.left_whole["a"]


def test_what_a_derived_layer_is():
    assert torch_kind(Conv3(1, 1)) is torch.nn.Conv2d
    assert torch_kind(Norm(1)) is torch.nn.BatchNorm2d
    assert torch_kind(Padded(1, 1, 1)) is None
    parametrised = torch.nn.utils.parametrizations.weight_norm(Conv3(1, 1))
    assert torch_kind(parametrised) is torch.nn.Conv2d
    own = torch.nn.ReLU()
    own.forward = torch.abs
    assert torch_kind(own) is None
