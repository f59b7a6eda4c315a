"""Copies of networks, and layers replaced wherever they stand."""

import threading
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import norton
from norton.graph.copies import copied, replace_

pytestmark = pytest.mark.quick


def masked(layer):
    return prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("run", [False, True])
@pytest.mark.parametrize("norm", [weight_norm, spectral_norm, masked])
def test_weights_that_hooks_compute_are_those_of_the_next_call(norm, run):
    torch.manual_seed(0)
    net, other = (nn.Sequential(norm(nn.Conv2d(3, 4, 3))) for _ in range(2))
    x = torch.randn(1, 3, 5, 5)
    if run:
        net(x)
    net.eval().load_state_dict(other.state_dict())
    copy = copied(net)
    wanted = other.eval()(x)
    assert torch.allclose(nn.functional.conv2d(x, copy[0].weight, copy[0].bias), wanted, atol=1e-6)
    assert torch.allclose(copy(x), wanted, atol=1e-6)
    assert copy.state_dict().keys() == net.state_dict().keys()


def test_tensors_with_gradients_in_lists_are_copied():
    net = nn.Sequential(nn.Linear(2, 2))
    net.seen = [(net(torch.ones(1, 2)),)]
    [(seen,)] = copied(net).seen
    assert torch.equal(seen, net.seen[0][0]) and seen.is_leaf


def test_every_reference_is_replaced():
    pair = namedtuple("pair", "layer number")
    net, new = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), nn.Linear(2, 3)
    old = net[0]
    net.second, net[1].plain = old, [old, 1]
    net.__dict__["hidden"] = old
    net.nested = {"a": ([pair(old, 2)], {"b": [old]}), "self": net}
    net.nested["loop"] = net.nested
    net.same, net.other = net[1].plain, (1, (2,))
    other, plain = net.other, net[1].plain
    replace_(net, {old: new})
    assert net[0] is net.second is net.hidden is net[1].plain[0] is new
    assert net.nested["a"] == ([pair(new, 2)], {"b": [new]}) and net.nested["loop"] is net.nested
    assert net.same is net[1].plain is plain and net.other is other


@pytest.mark.parametrize("make", [threading.Lock, lambda: (letter for letter in "ab")])
def test_what_cannot_be_copied_is_shared(make):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    held = net[0].held = [make()]
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8))
    assert small[0].out_channels == 4 and small[0].held[0] is held[0] and net[0].out_channels == 8
    assert norton.decompose(net, {"fraction": 0.5}, "tucker")[0].held[0] is held[0]
