"""Convolutions that compute with their weights before they use them: scaled ones (StyleGAN), masked ones (PixelCNN)."""

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from torch import nn

import norton


class Scaled(nn.Conv2d):
    """With an equalised learning rate."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = (2 / self.weight[0].numel()) ** 0.5

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, self.bias, self.stride, self.padding)


class ScaledAnew(Scaled):
    """By the number of inputs that it has when it is called, which would change when some go."""

    def forward(self, x):
        return F.conv2d(x, self.weight * (2 / (self.in_channels * 9)) ** 0.5, self.bias, self.stride, self.padding)


class OneMask(nn.Conv2d):
    """With the same mask for all filters and inputs."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.tensor([1.0, 0, 1, 0, 1, 0, 0, 0, 1]).view(1, 1, 3, 3))

    def forward(self, x):
        return F.conv2d(x, self.weight * self.mask, self.bias, self.stride, self.padding)


class Masked(nn.Conv2d):
    """With a mask of the size of its weight, which it changes itself."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", (torch.arange(self.weight.numel()) % 7 < 4).view_as(self.weight).float())

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def around(kind):
    return Between(lambda n, x: n.last(n.conv(x).tanh()), conv=kind(16, 16, 3, padding=1), last=nn.Conv2d(16, 16, 1))


@pytest.mark.parametrize("kind", [Scaled, OneMask])
def test_followed(kind):
    assert set(wiring_of_exact(lambda: around(kind)).left_whole) == {"head"}


def test_a_scale_by_the_number_of_inputs_keeps_these():
    whole = wiring_of_exact(lambda: around(ScaledAnew)).left_whole
    assert whole["first"] == "mul in conv: it computes with the number of channels" and "last" not in whole


def test_a_mask_of_the_weights_size_is_declared():
    assert {"first", "conv"} <= set(wiring_of_exact(lambda: around(Masked)).left_whole)
    reads, writes = {"weight": 1, "mask": 1, "in_channels": None}, {"weight": 0, "bias": 0, "mask": 0}
    norton.graph.declare(Masked, reads=reads, writes=writes | {"out_channels": None})
    assert set(wiring_of_exact(lambda: around(Masked)).left_whole) == {"head"}
