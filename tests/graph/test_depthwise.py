"""Depthwise convolutions called as functions, with a buffer of a module that is no convolution: blurs, as most."""

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from torch import nn

import norton

pytestmark = pytest.mark.quick

SIDES = {"one": (1, 1, 3, 3), "each": (16, 1, 3, 3), "kernel": (3, 3), "two": (16, 2, 3, 3)}


class Blur(nn.Module):
    """A kernel of some shape, that `blur` (module, images) works with."""

    def __init__(self, blur, kernel="each"):
        super().__init__()
        self.channels, self.blur = 16, blur
        weight = torch.rand(SIDES[kernel], generator=torch.Generator().manual_seed(0))
        self.register_buffer("filt", weight, persistent=False)
        self.shift = nn.Parameter(torch.linspace(0.1, 1, 16))

    def forward(self, x):
        return self.blur(self, x)


def of(*blur):
    return lambda: Between(lambda n, x: n.blur(x), blur=Blur(*blur))


def padded(m, x):
    return F.conv2d(F.pad(x, [1] * 4, mode="reflect"), m.filt, stride=2, groups=x.shape[1])


def expanded(m, x):
    channels = x.shape[1]
    return F.conv2d(x, m.filt.expand(channels, 1, 3, 3), stride=2, groups=channels)


def normed(m, x):
    return F.conv2d(x, (m.filt / m.filt.sum())[None, None].flip(3).repeat(x.size(1), 1, 1, 1), groups=x.size(1))


def twice(m, x):
    return F.conv2d(F.conv2d(x, m.filt, padding=1, groups=x.shape[1]), m.filt, groups=x.shape[1])


def read_first(m, x):
    kernels = m.filt.to(x)
    return x.new_ones(()) * kernels.max() * F.conv2d(x, kernels, groups=x.shape[1])


FOLLOWED = {
    "padded": of(padded),
    "by its number": of(lambda m, x: F.conv2d(x, m.filt, stride=2, groups=m.channels)),
    "by the length of its weight": of(lambda m, x: F.conv2d(x, m.filt, groups=m.filt.shape[0])),
    "of the type of images": of(
        lambda m, x: F.conv2d(x, m.filt.to(x), m.shift, padding=1, groups=x.size(1)) * x  # else it wakes what is dead
    ),
    "one kernel for all": of(expanded, "one"),
    "one kernel, by its number": of(
        lambda m, x: F.conv2d(x, m.filt.expand(m.channels, 1, 3, 3), groups=m.channels), "kernel"
    ),
    "one kernel, normed and turned": of(normed, "kernel"),
    "transposed": of(lambda m, x: F.conv_transpose2d(x, m.filt, stride=2, groups=x.shape[1])),
    "twice": of(twice),
}
WHOLE = {
    "a number that is written down": of(lambda m, x: F.conv2d(x, m.filt, groups=16)),
    "kernels in another order": of(lambda m, x: F.conv2d(x, m.filt.flip(0), groups=x.shape[1])),
    "kernels that are read otherwise": of(lambda m, x: F.conv2d(x, m.filt, groups=x.shape[1]) * m.filt.max()),
    "a mean of all kernels": of(
        lambda m, x: F.conv2d(x, m.filt.mean(0, True).expand(x.shape[1], -1, -1, -1), groups=x.shape[1])
    ),
    "kernels that are converted, and read otherwise": of(read_first),
    "groups of two": of(lambda m, x: F.conv2d(x, m.filt, groups=m.channels // 2), "two"),
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_followed_exactly(what):
    wiring = wiring_of_exact(FOLLOWED[what], cuts=2)
    assert set(wiring.left_whole) == {"head"} and wiring.width(wiring.axis_of("first")) == 16


@pytest.mark.parametrize("what", WHOLE)
def test_what_cannot_follow_stays_whole(what):
    assert "in blur" in wiring_of_exact(WHOLE[what], cuts=1).left_whole["first"]


@pytest.mark.filterwarnings("ignore:.*norton.load will need")
def test_numbers_and_kernels_follow(tmp_path):
    make, images = FOLLOWED["by its number"], torch.randn(2, 3, 8, 8)
    net, options = make(), norton.PruneOptions(min_filters=1)
    small = norton.prune(net, 0.5, criterion="l2", options=options, example=images)
    assert small.blur.channels == len(small.blur.filt) == small.first.out_channels == 8
    assert torch.equal(small.blur.filt, net.blur.filt[small.plan[-1]["keep"]["first"]])
    again = norton.load(norton.save(small, tmp_path / "net.pt"), net=make())
    assert torch.allclose(again.eval()(images), small.eval()(images))
    assert norton.prune(again, 0.5, "l2", options=options, example=images).blur.channels == 4
