"""BatchNorm re-estimation against the literal statistics."""

import pytest
import torch
from torch import nn

import norton
from norton.calibration import reestimate_batchnorm_


def test_statistics_are_those_of_the_activations():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).eval()
    images = 2 + 3 * torch.randn(64, 3, 8, 8)
    weights = [p.clone() for p in net.parameters()]
    reestimate_batchnorm_(net, images, batch_size=64)
    y = net[0](images)
    torch.testing.assert_close(net[1].running_mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, y.var((0, 2, 3)))
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))
    assert not net.training
    assert net[1].momentum == 0.1
    assert not net[1].training


def test_batches_are_averaged_and_a_smaller_last_one_left_out():
    net = nn.Sequential(nn.BatchNorm2d(2))
    images = torch.randn(25, 2, 4, 4)
    reestimate_batchnorm_(net, images, batch_size=10)
    literal = torch.stack([images[:10].mean((0, 2, 3)), images[10:20].mean((0, 2, 3))]).mean(0)
    torch.testing.assert_close(net[0].running_mean, literal)
    assert net.training


def test_a_training_mode_with_frozen_layers_comes_back():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    net[1].eval()
    reestimate_batchnorm_(net, torch.randn(8, 3, 8, 8))
    assert net[0].training
    assert not net[1].training


def test_too_few_images():
    with pytest.raises(norton.InputError, match="a few hundred"):
        reestimate_batchnorm_(norton.build("resnet_56"), torch.zeros(1, 3, 32, 32))


def test_the_form_of_decomposed_layers_decides_the_time_only():
    net = norton.decompose(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 2)
    images = torch.randn(16, 3, 8, 8)
    literal = net[0](images)
    assert net[0].form == "factored"
    reestimate_batchnorm_(net, images, batch_size=16)
    assert net[0].form == "factored"
    torch.testing.assert_close(net[1].running_mean, literal.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, literal.var((0, 2, 3)))
