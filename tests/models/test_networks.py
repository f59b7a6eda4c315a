"""What every verb says of something that is no network, and the lists of what can be named."""

import pytest
import torch
import torchvision

import norton
from norton.decomposition import DECOMPOSITIONS, list_methods
from norton.models import NETWORKS, list_models
from norton.pruning import CRITERIA, list_criteria

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("verb", [
    lambda net: norton.decompose(net, 2),
    lambda net: norton.prune(net, 0.3, "l2"),
    lambda net: norton.choose_ranks(net, macs=0.5),
    lambda net: norton.complexity(net, (3, 32, 32)),
    lambda net: norton.nmse(net, net),
    lambda net: norton.wiring_of(net),
    lambda net: norton.deploy(net, torch.zeros(1, 3, 8, 8)),
    lambda net: norton.save(net, "never.pt"),
])  # fmt: skip
def test_a_constructor_is_no_network(verb):
    with pytest.raises(norton.InputError, match=r"resnet18 is no network, but makes one; call it, as in resnet18\(\)"):
        verb(torchvision.models.resnet18)
    with pytest.raises(norton.InputError, match="this dict is no network"):
        verb({})


def test_lists():
    for found, registry in ((list_models(), NETWORKS), (list_methods(), DECOMPOSITIONS), (list_criteria(), CRITERIA)):
        assert found == sorted(registry)
    assert "resnet_56" in list_models() and "cp" in list_methods() and "pabs" in list_criteria()
