"""Which weights a network reads itself."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from norton.graph.reading import weights_read

pytestmark = pytest.mark.quick


class Net(nn.Module):
    """Layer `a` is computed as `how` says, given the network, and `b` is called."""

    input_size = (3, 8, 8)

    def __init__(self, how, prepare=None):
        super().__init__()
        self.a, self.b, self.how = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3), how
        if prepare is not None:
            self.held = prepare(self)

    def forward(self, x):
        return self.b(self.how(self, x).relu())


def functional(net, x):
    return F.conv2d(x, weight=net.a.weight)


def penalty(net, x):
    return net.a(x) + sum(p.square().sum() for p in net.a.parameters())


def held(net, x):
    return net.held(x)


def in_training(net, x):
    return functional(net, x) if net.training else net.a(x)


def called(net, x):
    return net.a(x.to(net.a.weight.dtype)) * net.a.weight.shape[0]


def shared(net):
    net.c = nn.Conv2d(3, 4, 3)
    net.c.weight = net.a.weight


READ = {
    "function": Net(functional),
    "penalty": Net(penalty),
    "closure": Net(held, lambda net: lambda x: net.a(x)),
    "partial": Net(held, lambda net: partial(net.a)),
    "method": Net(held, lambda net: net.a.forward),
    "foreign": Net(lambda net, x: net.held.layers[0](x), lambda net: SimpleNamespace(layers=(net.a,))),
    "shared": Net(lambda net, x: net.c(x), shared),
    "in training": Net(in_training),
}
NOT_READ = {
    "called": Net(called),
    "by its method": Net(lambda net, x: net.a.forward(x)),
    "in a list": Net(lambda net, x: net.held[0](x), lambda net: [net.a]),
    "in tuples": Net(lambda net, x: net.held[0]["a"](x), lambda net: ({"a": net.a},)),
    "not to be run": Net(lambda net, x: net.a(x[:, :2])),
}


@pytest.mark.parametrize("name", READ)
def test_weights_that_are_read(name):
    net = READ[name]
    found = weights_read(net, {"a": net.a, "b": net.b})
    assert list(found) == ["a"] and "test_reading.py" in found["a"]


@pytest.mark.parametrize("name", NOT_READ)
def test_weights_of_layers_that_are_called(name):
    net = NOT_READ[name]
    assert weights_read(net, {"a": net.a, "b": net.b}) == {}


def test_the_network_stays_as_it_is():
    net = READ["closure"].eval()
    before, x = {key: value.clone() for key, value in net.state_dict().items()}, torch.randn(1, 3, 8, 8)
    wanted = net(x)
    weights_read(net, {"a": net.a})
    assert not net.training and torch.equal(net(x), wanted) and "forward" not in vars(net.a)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
