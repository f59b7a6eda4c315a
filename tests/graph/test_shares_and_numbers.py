"""Numbers of channels in places where no shape shows them: filled into tensors, or as sizes of parts."""

import math

import pytest
import torch
from helpers.between import Between, wiring_of_exact
from torch import nn

import norton


def first_quarter(net, x):
    width = x.shape[1]
    some, others = x.split([width // 4, width - width // 4], 1)
    return torch.cat([torch.sin(some), others], 1)


NUMBERS = {
    "torch.tensor": lambda net, x: x / torch.tensor(x.shape[1], dtype=x.dtype).sqrt(),
    "torch.tensor of a root": lambda net, x: x / torch.tensor(math.sqrt(x.shape[1]), dtype=x.dtype),
    "torch.tensor of a layer's width": lambda net, x: x / torch.tensor(float(net.second.in_channels), dtype=x.dtype),
    "new_tensor": lambda net, x: x / x.new_tensor(x.shape[1]),
    "new_full": lambda net, x: x / x.new_full((1,), x.shape[1]),
    "torch.full": lambda net, x: x * torch.full((1, 1, 1, 1), 1 / x.shape[1], dtype=x.dtype),
    "torch.full_like": lambda net, x: x * torch.full_like(x, 1 / x.shape[1]),
    "torch.DoubleTensor": lambda net, x: x / torch.DoubleTensor([x.shape[1]]).sqrt().to(x.device),
    "a share": first_quarter,
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_channels(what):
    wiring = wiring_of_exact(lambda: Between(NUMBERS[what]))
    assert ("number of" in wiring.left_whole.get("first", "")) == (what != "a share")


class ByOthers(nn.Module):
    """Parts as wide as other tensors are, which then lose as many channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.both = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(3, 10, 3), nn.Conv2d(16, 16, 1)
        self.c, self.d = nn.Conv2d(6, 4, 1), nn.Conv2d(10, 4, 1)

    def forward(self, x):
        a, b = torch.tanh(self.a(x)), torch.tanh(self.b(x))
        both = torch.tanh(self.both(torch.cat([a, b], 1)))
        first, second = both.split([a.shape[1], b.shape[1]], 1)
        return self.c(first) + self.d(both[:, a.shape[1] :]) + second.mean()


def test_parts_as_wide_as_other_tensors():
    wiring = norton.wiring_of(ByOthers(), (3, 8, 8))
    assert wiring.axis_of("both") == wiring.axis_of("a") != wiring.axis_of("b")
    assert wiring.frozen.keys() == {wiring.axis_of("c"), wiring.axis_of("b")}  # of the mean of all
