"""What a network returns stays whole, in whatever it is returned; lazy layers have to be made first."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

import norton


@dataclass
class Found:
    scores: torch.Tensor
    maps: list


@dataclass(slots=True)
class Slotted:
    scores: torch.Tensor
    maps: list


class Plain:
    def __init__(self, scores, maps):
        self.scores, self.inner = scores, Found(scores, maps)


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head, self.kind = nn.Linear(8, 4), kind

    def forward(self, x):
        maps = self.conv(x)
        return self.kind(self.head(self.other(maps).mean((2, 3))), [maps])


@pytest.mark.parametrize("kind", [Found, Slotted, Plain, lambda scores, maps: {"out": (scores, maps)}])
def test_outputs_stay_whole(kind):
    assert norton.wiring_of(Net(kind), (3, 8, 8)).left_whole.keys() == {"conv", "head"}


def test_lazy_layers():
    net = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 4, 1))
    with pytest.raises(norton.InputError, match="run it once on an input"):
        norton.prune(net, 0.5, example=(3, 8, 8))
    net(torch.randn(1, 3, 8, 8))
    assert norton.wiring_of(net, (3, 8, 8)).free_filters == 8


class Looking(nn.Module):
    """A layer whose maps nothing takes, and a part of the maps that code changes in place."""

    def __init__(self, in_place):
        super().__init__()
        self.conv, self.other, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)
        self.in_place = in_place

    def forward(self, x):
        maps = self.conv(x)
        if self.in_place:
            part = maps[:, :, :2]
            part[...] = part.sin()
        else:
            self.other(maps)
        return self.head(maps)


@pytest.mark.parametrize("in_place, layer", [(False, "other"), (True, "conv")])
def test_what_nothing_takes_is_no_output(in_place, layer):
    assert norton.wiring_of(Looking(in_place), (3, 8, 8)).left_whole[layer].endswith("so that something unseen may")
