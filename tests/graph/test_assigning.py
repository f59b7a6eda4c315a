"""Assignments to parts of a tensor: what is put somewhere goes with the channels that are there."""

import pytest
import torch
from helpers.between import Between, wiring_of_exact
from torch import nn

pytestmark = pytest.mark.quick


def temporal_shift(n, x):
    """Of three frames; an eighth of the channels comes from the next one, an eighth from the one before."""
    x, fold = x.view(-1, 3, *x.shape[1:]), x.shape[1] // 8
    out = torch.zeros_like(x)
    out[:, :-1, :fold] = x[:, 1:, :fold]
    out[:, 1:, fold : 2 * fold] = x[:, :-1, fold : 2 * fold]
    out[:, :, 2 * fold :] = x[:, :, 2 * fold :]
    return out.flatten(0, 1)


def assigned(index, value, start=torch.zeros_like):
    """A tensor after an assignment; index: of the network; value: (network, images) → what is put there."""

    def between(n, x):
        y = start(x)
        y[index(n)] = value(n, x)
        return y

    return between


def halves_swapped(n, x):
    y, half = torch.zeros_like(x), x.shape[1] // 2
    y[:, :half] = x[:, half:]
    y[:, half:] = x[:, :half]
    return y


def rows_changed(n, x):
    y = x.clone()
    y[:, :, 0] = 0
    y[..., 1] *= 2
    y[:, :, 3:].copy_(x[:, :, :-3])
    return y


def below(n):
    return slice(None), slice(None), slice(1, None)


def first_row(n):
    return slice(None), slice(None), 0


def made(between):
    def make():
        net = Between(between, other=nn.Conv2d(16, 16, 1))
        net.half = 8
        return net

    return make


FOLLOWED = {  # → units of the first convolution
    "a temporal shift": (temporal_shift, 2),
    "rows below": (assigned(below, lambda n, x: x[:, :, :-1]), 16),
    "rows in place": (rows_changed, 16),
    "halves swapped": (halves_swapped, 8),
    "channels up to its number": (
        assigned(lambda n: (slice(None), slice(n.half)), lambda n, x: x[:, : n.half].sin(), torch.clone),
        16,
    ),
    "a row of another layer": (assigned(first_row, lambda n, x: n.other(x)[:, :, 0], torch.clone), 16),
    "a new tensor of zeros": (assigned(below, lambda n, x: x[:, :, :-1], lambda x: x.new_zeros(x.shape)), 16),
    "zeros of more rows": (
        assigned(below, lambda n, x: x, lambda x: x.new_zeros(len(x), x.size(1), x.size(2) + 1, x.size(3))),
        16,
    ),
    "rows turned round": (assigned(below, lambda n, x: x.flip(1)[:, :, 1:], torch.clone), 8),
}
WHOLE = {
    "a number that would wake them": assigned(first_row, lambda n, x: 1, torch.clone),
    "one for all": assigned(first_row, lambda n, x: x.sum(1, keepdim=True)[:, :, 0], torch.clone),
    "four of them": assigned(lambda n: (slice(None), slice(4)), lambda n, x: x[:, :4]),
    "where it is large": lambda n, x: assigned(lambda _: x > 0.5, lambda *_: 0, torch.clone)(n, x),
    "a new tensor of ones": assigned(below, lambda n, x: x[:, :, :-1], lambda x: x.new_ones(x.shape)),
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_followed_exactly(what):
    between, units = FOLLOWED[what]
    wiring = wiring_of_exact(made(between), cuts=2)
    assert set(wiring.left_whole) == {"head"} and wiring.width(wiring.axis_of("first")) == units


@pytest.mark.parametrize("what", WHOLE)
def test_what_cannot_follow_stays_whole(what):
    assert "in the forward pass" in wiring_of_exact(made(WHOLE[what]), cuts=1).left_whole["first"]
