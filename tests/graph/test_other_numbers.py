"""Numbers that change with the channels where they are no size of channels: places in images, offsets, strides."""

import math

import numpy as np
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
    return Between(
        between, kernels=nn.Parameter(torch.randn(16, 1, 3, 3)), table=nn.Parameter(torch.randn(9, 8)), half=8
    )


@pytest.mark.parametrize("what", STAY)
def test_no_cut_changes_such_numbers(what):
    assert "it computes with" in wiring_of_exact(lambda: made(STAY[what])).left_whole["first"]


@pytest.mark.parametrize("what", FOLLOW)
def test_sizes_and_places_of_channels_follow(what):
    assert set(wiring_of_exact(lambda: made(FOLLOW[what])).left_whole) == {"head"}


def table_row(net, x):
    return halves(net, x) + net.table[net.half].view(1, 1, -1, 1)


MADE = {
    "np.prod": lambda net, x: x * x.sum((1, 2, 3), keepdim=True) / np.prod(x.shape[1:]),
    "np.float32": lambda net, x: x * x.sum(1, keepdim=True) * np.float32(x.shape[1] ** -0.5),
    "as_tensor of a NumPy number": lambda net, x: x * x.sum(1, keepdim=True) / torch.as_tensor(np.int64(x.shape[1])),
    "as_tensor of an array": lambda net, x: x * torch.as_tensor(np.full(8, x.shape[1] / 16)),
    "from_numpy of an array": lambda net, x: x * torch.from_numpy(np.full(8, x.shape[1] / 16)),
    "from_numpy of maps": lambda net, x: x * torch.from_numpy(np.full((3, 1, 8, 8), x.shape[1] / 16)),
    "ones(C).sum()": lambda net, x: x * x.sum(1, keepdim=True) / torch.ones(x.shape[1]).sum(),
    "eye(C).mean()": lambda net, x: x * x.sum(1, keepdim=True) * torch.eye(x.shape[1]).mean(),
    "arange(C)[-1]": lambda net, x: x * x.sum(1, keepdim=True) / torch.arange(x.shape[1])[-1],
    "linspace to C": lambda net, x: x * torch.linspace(1, x.shape[1], 8, dtype=x.dtype),
    "a row of a table": table_row,
}


@pytest.mark.parametrize("what", MADE)
def test_no_cut_changes_numbers_that_pass_through_other_tensors(what):
    left_whole = wiring_of_exact(lambda: made(MADE[what])).left_whole
    assert set(left_whole) == {"first", "head"}
    assert "it computes with" in left_whole["first"]


def first_part(width):
    """A part of the channels, of a size that is computed of their number."""

    def between(net, x):
        size = width(x.shape[1])
        return torch.cat([x[:, :size].tanh(), x[:, size:].sin()], 1)

    return between


PARTS = {
    "shifted": lambda c: c >> 1,
    "and back": lambda c: c >> 2 << 1,
    "divmod": lambda c: sum(divmod(c, 2)),
    "abs": lambda c: abs(-c // 2),
    "round": lambda c: round(c / 2),
    "ceil": lambda c: math.ceil(c / 2),
    "floor": lambda c: math.floor(c / 2),
    "trunc": lambda c: math.trunc(c * 0.5),
    "a multiple": lambda c: c & ~7,
}


@pytest.mark.parametrize("what", PARTS)
def test_numbers_that_are_computed_of_sizes_are_no_plain_ones(what):
    left_whole = wiring_of_exact(lambda: Between(first_part(PARTS[what]))).left_whole
    assert "which does not follow" not in left_whole.get("first", "")


def test_int_forgets_of_what_a_number_is():
    left_whole = wiring_of_exact(lambda: Between(first_part(lambda c: int(c / 2)))).left_whole
    reason = "it takes 8 of the channels, which does not follow them"
    assert left_whole["first"] == f"getitem in the forward pass: {reason}"
