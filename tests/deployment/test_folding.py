"""BatchNorm is folded where it alone follows a layer, and nowhere else."""

import pytest
import torch
import torchvision
from helpers.deployment import close, norms
from helpers.networks import randomise_
from torch import nn

from norton import InputError, deploy
from norton.deployment.folding import fold
from norton.deployment.following import FoldedNorm

pytestmark = pytest.mark.quick


def test_folding_takes_only_norms_that_alone_follow_a_layer(small):
    x, before = torch.randn(4, 3, 8, 8), {name: value.clone() for name, value in small.state_dict().items()}
    folded = fold(small, x).net
    assert norms(folded) == ["norm2", "norm3", "norm4"]
    close(folded(x), small(x))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_frozen_norms_are_folded(small):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), torchvision.ops.FrozenBatchNorm2d(4), nn.ReLU())
    for name in ("weight", "bias", "running_mean"):
        getattr(net[1], name).normal_()
    x = torch.randn(2, 3, 6, 6)
    folded = fold(net, x).net
    assert [type(layer) for layer in folded.children()] == [nn.Conv2d, FoldedNorm, nn.ReLU]
    close(folded(x), net(x))


class Tied(nn.Module):
    """Two convolutions with one weight, each before its own BatchNorm."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.two.weight = self.one.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm2(self.two(self.norm1(self.one(x))))


class Reads(nn.Module):
    """A convolution whose weight is read outside of it too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight, padding=1)


def normed(conv):
    return nn.Sequential(conv, nn.BatchNorm2d(3))


def hooked():
    conv = nn.Conv2d(3, 3, 3)
    conv.register_forward_hook(lambda layer, inputs, output: output + 1)
    return conv


@pytest.mark.parametrize(
    "make",
    [
        Tied,
        Reads,
        lambda: normed(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
        lambda: normed(hooked()),
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3)),  # (N, 3, 3): the norm is of axis 1
    ],
    ids=["tied", "read", "parametrised", "hooked", "linear"],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_that_are_bound_are_never_scaled_wrongly(make, zeros):
    """Either the outputs are right on any images, or the network is refused; an example of zeros shows no errors."""
    torch.manual_seed(0)
    net, x = randomise_(make()).eval(), torch.randn(2, 3, 8, 8)
    try:
        deployed = deploy(net, torch.zeros_like(x) if zeros else x, repeats=1)
    except InputError as error:
        assert isinstance(net, nn.Sequential) and "differ" in str(error)
    else:
        close(deployed(x), net(x))
