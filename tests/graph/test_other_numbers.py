"""Numbers that change with the channels where they are no size of channels: places in images, offsets, strides."""

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from torch import nn


def halves(net, x):
    return torch.cat(torch.split(x, net.half, 1), 1)


def assigned(net, x, row):
    x = halves(net, x).clone()
    x[:, :, row] = 0
    return x


def normed(net, x):
    x = x.permute(0, 2, 3, 1)
    return F.layer_norm(x, (x.shape[3],), eps=1 / x.shape[3]).permute(0, 3, 1, 2)


def dilated(net, x):
    width = x.shape[1]
    return F.conv2d(x, net.kernels, padding=width // 8, dilation=width // 8, groups=width)


STAY = {
    "a row by a number that counts channels": lambda net, x: halves(net, x) + x[:, :, net.half // 2, None],
    "rows by such a number": lambda net, x: halves(net, x) + x[:, :, net.half - 1 : net.half].mean(2, keepdim=True),
    "a row that is assigned to": lambda net, x: assigned(net, x, net.half // 2),
    "a row by a share of the width": lambda net, x: x + x.select(2, x.shape[1] // 4).unsqueeze(2),
    "narrow": lambda net, x: x + x.narrow(2, x.shape[1] // 4, 1),
    "the value of a padding": lambda net, x: F.pad(x, (1, 1, 1, 1), value=float(x.shape[1])),
    "the sides of a padding": lambda net, x: F.pad(x, (x.shape[1] // 8, 4 - x.shape[1] // 8, 0, 0)),
    "the offset of a norm": normed,
    "the steps of a convolution": dilated,
    "what spreads a tensor with values": lambda net, x: (
        torch.var_mean(x, (2, 3), correction=x.shape[1], keepdim=True)[1]
        + torch.var_mean(x, (2, 3), correction=x.shape[1], keepdim=True)[0]
    ),
}
FOLLOW = {
    "parts": halves,
    "places of channels and rows": lambda net, x: torch.cat(
        [x[:, : net.half, 1:].tanh(), x[:, net.half :, :-1].sin()], 1
    ),
    "a reshape": lambda net, x: x.view(x.shape[0], 2, x.shape[1] // 2, *x.shape[2:]).tanh().flatten(1, 2),
    "rows by a number of rows": lambda net, x: halves(net, x)[:, :, : x.shape[2] // 2],
}


def made(between):
    net = Between(between, kernels=nn.Parameter(torch.randn(16, 1, 3, 3)))
    net.half = 8
    return net


@pytest.mark.parametrize("what", STAY)
def test_no_cut_changes_such_numbers(what):
    assert "number of" in wiring_of_exact(lambda: made(STAY[what])).left_whole["first"]


@pytest.mark.parametrize("what", FOLLOW)
def test_sizes_and_places_of_channels_follow(what):
    assert set(wiring_of_exact(lambda: made(FOLLOW[what])).left_whole) == {"head"}
