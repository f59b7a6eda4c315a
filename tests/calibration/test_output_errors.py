"""Errors of layers, each in its own network."""

import pytest
from helpers.networks import randomise_
from helpers.residual import Residual, calibration_images
from torch import nn

import norton
from norton.calibration import output_errors


@pytest.fixture
def net() -> nn.Module:
    return randomise_(Residual())


def test_output_errors_are_those_of_layers_in_their_networks(net):
    images = calibration_images()
    small = norton.decompose(net, 1, objective="outputs", images=images)
    found = output_errors(net, small, images, batch_size=25)
    assert list(found) == ["stem", "conv1", "conv2"]
    before, after = (one.conv1(one.stem(images).relu()).detach() for one in (net, small))
    lost, before = (values - values.mean((0, 2, 3), keepdim=True) for values in (after - before, before))
    assert found["conv1"] == pytest.approx((lost.square().sum() / before.square().sum()).item(), rel=1e-4)
    assert all(error < output_errors(net, norton.decompose(net, 1), images)[name] for name, error in found.items())
