"""Patches of images as columns, windows of rows, and pooling that is undone at the places it came from."""

import pytest
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from torch import nn

pytestmark = pytest.mark.quick


def patches_weighed(n, x):
    """Involution: each position's patch, weighed by what the position itself says."""
    b, c, h, w = x.shape
    patches = F.unfold(x, 3, padding=1).view(b, c, 9, h, w)
    return (patches * n.weigh(x).unsqueeze(1)).sum(2)


def weighed_by_heads(n, x):
    b, _, h, w = x.shape
    patches = n.unfold(x).view(b, n.heads, -1, 9, h, w)
    return (patches * n.weigh(x).view(b, 1, 1, 9, h, w)).sum(3).reshape(b, -1, h, w)


def patch_by_patch(n, x):
    columns = F.unfold(x, 2, stride=2)
    return F.fold(columns.sin() * columns.mean(2, keepdim=True), x.shape[2:], 2, stride=2)


def windows(n, x):
    return F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).amax((4, 5))


def segnet(n, x):
    y, places = F.max_pool2d(x, 2, return_indices=True)
    y, more = n.pool(n.inner(y))
    return F.max_unpool2d(n.unpool(y, more), places, 2, output_size=x.size())


def made(between):
    def make():
        net = Between(
            between,
            weigh=nn.Conv2d(16, 9, 1),
            unfold=nn.Unfold(3, padding=1),
            inner=nn.Conv2d(16, 16, 3, padding=1, bias=False),
            pool=nn.MaxPool2d(2, return_indices=True),
            unpool=nn.MaxUnpool2d(2),
        )
        net.heads = 4
        return net

    return make


FOLLOWED = {  # → units of the first convolution
    "patches weighed": (patches_weighed, 16),
    "patches weighed, head by head": (weighed_by_heads, 4),
    "patch by patch": (patch_by_patch, 16),
    "as layers": (lambda n, x: nn.Fold(x.shape[2:], 3, padding=1)(n.unfold(x)), 16),
    "windows of rows and columns": (windows, 16),
    "pooled and unpooled": (segnet, 16),
}
WHOLE = {
    "nine rows at a time": lambda n, x: F.unfold(x, 3, padding=1)[:, :16].unflatten(2, (8, 8)),
    "windows of channels": lambda n, x: x.unfold(1, 2, 2).sum(-1).repeat(1, 2, 1, 1),
    "places as numbers": lambda n, x: F.max_pool2d(x, 2, return_indices=True)[1] * 0.1 + x[:, :, ::2, ::2],
}


@pytest.mark.parametrize("what", FOLLOWED)
def test_followed_exactly(what):
    between, units = FOLLOWED[what]
    wiring = wiring_of_exact(made(between), cuts=2)
    assert "first" not in wiring.left_whole and wiring.width(wiring.axis_of("first")) == units


@pytest.mark.parametrize("what", WHOLE)
def test_what_cannot_follow_stays_whole(what):
    assert "in the forward pass" in wiring_of_exact(made(WHOLE[what]), cuts=1).left_whole["first"]
