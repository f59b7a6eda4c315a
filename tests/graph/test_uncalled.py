"""What layers could meet that the example's pass does not call stays whole, so that no other pass breaks."""

import pytest
import torch
from torch import nn

import norton

pytestmark = pytest.mark.quick


def block():
    return nn.Sequential(nn.Conv2d(16, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 1))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), block(), block()
        self.more, self.z = self.made(), nn.Conv2d(16, 5, 1)

    @staticmethod
    def made():
        return nn.ModuleList([nn.Conv2d(16, 16, 1)])

    def forward(self, x, condition=None):
        return self.z(self.c(self.changed(self.b(self.a(x)), x, condition)))


class BySize(Net):
    def changed(self, y, x, condition):
        return y + self.more[0](y) if x.shape[-1] > 32 else y


class ByBatch(Net):
    def changed(self, y, x, condition):
        return self.more[0](y) if len(x) == 1 else y


class OfHalf(Net):
    """The layer reads channels of another number than anything here has."""

    @staticmethod
    def made():
        return nn.ModuleList([block(), nn.Conv2d(7, 16, 1)])

    def changed(self, y, x, condition):
        return self.more[1](y[:, :7]) if int(x.shape[-1]) > 32 else self.more[0](y)


class Optional(Net):
    def made(self):
        return nn.Linear(4, 16)

    def changed(self, y, x, condition):
        return y if condition is None else y + self.more(condition)[:, :, None, None]


class Scaled(Net):
    def made(self):
        return nn.ParameterDict({"scale": torch.rand(16, 1, 1)})

    def changed(self, y, x, condition):
        return y if condition is None else y * self.more["scale"]


X = torch.randn(2, 3, 16, 16)
CASES = [
    (BySize, (torch.randn(2, 3, 40, 40),)),
    (ByBatch, (torch.randn(1, 3, 16, 16),)),
    (OfHalf, (torch.randn(2, 3, 40, 40),)),
    (Optional, (X, torch.randn(2, 4))),
    (Scaled, (X, torch.randn(2, 4))),
]


@pytest.mark.parametrize("kind, later", CASES, ids=lambda x: getattr(x, "__name__", ""))
@torch.no_grad()
def test_another_pass_does_not_break(kind, later):
    net = kind().eval()
    whole = norton.wiring_of(net, (3, 16, 16)).left_whole
    assert {"b.2", "z"} <= whole.keys() and "more" in whole["b.2"] and not {"b.0", "c.0"} & whole.keys()
    small = norton.prune(net, 0.3, "l2", options=norton.PruneOptions(min_filters=1), example=X)
    assert small.b[0].out_channels == small.c[0].out_channels == 8
    assert small(*later).shape == net(*later).shape
    for name in ("b", "c"):  # what goes is inside of modules that the code only calls
        dead = sorted({*range(12)} - {*small.plan[-1]["keep"][f"{name}.0"]})
        layer = getattr(net, name)[0]
        layer.weight[dead], layer.bias[dead] = 0, 0
    torch.testing.assert_close(small(*later), net(*later))


def test_where_the_example_takes_the_branch_it_is_followed():
    wiring = norton.wiring_of(BySize(), (3, 40, 40))
    assert set(wiring.left_whole) == {"z"}
    assert set(norton.wiring_of(Optional(), (X, torch.randn(2, 4))).left_whole) == {"z"}


class Unused(Net):
    """A layer that no code names, such as the classifier of a network that gives features."""

    def changed(self, y, x, condition):
        return y


class InTraining(Net):
    def forward(self, x):
        y = self.a(x)
        return (self.z(self.c(self.b(y))), self.more[0](y)) if self.training else self.z(self.c(self.b(y)))


@pytest.mark.parametrize("kind", [Unused, InTraining])
def test_what_is_called_in_training_alone_or_never_costs_nothing(kind):
    whole = norton.wiring_of(kind(), (3, 16, 16)).left_whole
    assert set(whole) <= {"z", "more.0"}
