"""Numbers by which modules say how wide they are follow, so that methods that go by them work on cut networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.cutting import randomised
from torch import nn

import norton

pytestmark = pytest.mark.quick


def normed(inputs, outputs, kernel, stride=1, groups=1):
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


class Branches(nn.Module):
    """A block after RepVGG and MobileOne: convolutions and a BatchNorm side by side, which become one convolution."""

    def __init__(self, inputs, outputs, stride=1, groups=1):
        super().__init__()
        self.in_channels, self.out_channels, self.groups, self.stride = inputs, outputs, groups, stride
        self.big, self.small = normed(inputs, outputs, 3, stride, groups), normed(inputs, outputs, 1, stride, groups)
        self.same = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None
        self.one = None

    def forward(self, x):
        if self.one is not None:
            return self.one(x).relu()
        return (self.big(x) + self.small(x) + (0 if self.same is None else self.same(x))).relu()

    def fuse(self):
        parts = [self._kernel(*branch) for branch in (self.big, self.small) if branch is not None]
        if self.same is not None:
            each = self.in_channels // self.groups
            identity = torch.zeros(self.in_channels, each, 3, 3, dtype=self.same.weight.dtype)
            for channel in range(self.in_channels):
                identity[channel, channel % each, 1, 1] = 1
            parts.append(self._kernel(identity, self.same))
        self.one = nn.Conv2d(self.in_channels, self.out_channels, 3, self.stride, 1, groups=self.groups)
        self.one.weight.data, self.one.bias.data = (sum(part) for part in zip(*parts, strict=True))
        self.big = self.small = self.same = None

    def _kernel(self, kernel, norm):
        kernel = kernel.weight if isinstance(kernel, nn.Module) else kernel
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        kernel = F.pad(kernel, (1,) * 4) if kernel.shape[-1] == 1 else kernel
        return kernel * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class Alone(Branches):
    """Of the branches the BatchNorm alone is left, as in FastViT."""

    def __init__(self, *numbers):
        super().__init__(*numbers)
        self.big = self.small = None

    def forward(self, x):
        return self.same(x).relu() if self.one is None else self.one(x).relu()


class Positions(nn.Module):
    """After FastViT's and RepViT's: a depthwise convolution with a shortcut, which goes by `dim`."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.mix = dim, nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.fused = False

    def forward(self, x):
        return self.mix(x) if self.fused else x + self.mix(x)

    def fuse(self):
        one = nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim).to(self.mix.weight)
        one.load_state_dict(self.mix.state_dict())
        one.weight.data[:, 0, 1, 1] += 1
        self.mix, self.fused = one, True


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 24, 3, padding=1), nn.Linear(24, 5)
        self.blocks = nn.Sequential(
            Branches(24, 32, 2),
            Branches(32, 32),
            Branches(32, 32, 1, 32),
            Positions(32),
            Branches(32, 24, 1, 4),
            Alone(24, 24, 1, 24),
        )

    def forward(self, x):
        return self.last(self.blocks(self.stem(x)).mean((2, 3)))


def fused(net):
    net = copy.deepcopy(net)
    for block in net.blocks:
        block.fuse()
    return net


@torch.no_grad()
def test_cut_blocks_are_fused():
    net, x = randomised(Net().double()).eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fused(net)(x), net(x))
    small = norton.prune(net, 0.4, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).eval()
    assert small.stem.out_channels < 24 and all(block.big[0].out_channels < 32 for block in small.blocks[:3])
    assert small.blocks[-1].groups == small.blocks[-1].in_channels < 24
    torch.testing.assert_close(fused(small)(x), small(x))
    again = norton.prune(small, 0.4, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).eval()
    torch.testing.assert_close(fused(again)(x), again(x))
    small = norton.prune(fused(net), 0.4, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).eval()
    assert small.blocks[0].one.out_channels < 32 and small(x).isfinite().all()


class Scaled(nn.Module):
    """The forward pass computes with one of the numbers, which must not follow; the others may."""

    def __init__(self):
        super().__init__()
        self.in_channels, self.out_channels, self.dim = 16, 12, 16
        self.a = nn.Conv2d(16, 12, 1)

    def forward(self, x):
        return self.a(x) * self.dim**-0.5


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.last = nn.Conv2d(3, 16, 3), Scaled(), nn.Conv2d(12, 5, 1)

    def forward(self, x):
        return self.last(self.inner(self.stem(x).relu()).relu())


@torch.no_grad()
def test_a_number_that_is_computed_with_stays_and_costs_nothing():
    net, x = Around().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    wiring = norton.wiring_of(net, (3, 8, 8))
    assert set(wiring.left_whole) == {"last"}
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).eval()
    assert small.inner.dim == 16 and small.stem.out_channels == 8
    torch.testing.assert_close(small(x), dead(net, small)(x))


def dead(net, small):
    net = copy.deepcopy(net)
    for name, kept in small.plan[-1]["keep"].items():
        layer = net.get_submodule(name)
        gone = sorted({*range(layer.out_channels)} - {*kept})
        layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    return net
