"""Operations that public networks have between layers, each followed exactly and not left whole."""

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact
from helpers.dead import largest_error, outputs, with_dead_filters
from helpers.random_checks import cut, random_keep
from torch import nn

import norton


def sampled(net, x):
    grid = F.affine_grid(torch.eye(2, 3, dtype=x.dtype).expand(len(x), 2, 3) * 0.7, x.size(), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def selected(net, x):
    """Two branches weighed against each other, as SKNet has it."""
    width, branches = net.width, [torch.sin(x), torch.tanh(x)]
    weights = net.fc(x.mean((2, 3))).reshape(len(x), 2, width, -1).softmax(1).chunk(2, 1)
    return sum(branch * weight.reshape(len(x), width, 1, 1) for branch, weight in zip(branches, weights, strict=True))


class Selecting(Between):
    def __init__(self):
        super().__init__(selected, fc=nn.Linear(16, 32))
        self.width = 16


class Patched(Between):
    """A layer of torch's whose channels code of its own turns round."""

    def __init__(self):
        super().__init__(lambda n, x: x)
        convolve = self.first._conv_forward
        self.first._conv_forward = lambda x, weight, bias: convolve(x, weight, bias).flip(1)


def scales():
    return nn.ParameterList(nn.Parameter(torch.arange(1.0, 17)) for _ in range(2))


MAKE = {
    "parameters in a list": lambda: Between(
        lambda n, x: x * n.scales[0].view(-1, 1, 1) * n.scales[1][:, None, None], scales=scales()
    ),
    "the larger of two": lambda: Between(lambda n, x: torch.max(x.sin(), torch.min(x, x**3))),
    "the larger of two halves": lambda: Between(lambda n, x: torch.max(*x.chunk(2, 1)), read=8),
    "a mask of its own": lambda: Between(lambda n, x: torch.where(x > 0.1, x, torch.zeros_like(x)) * (x.round() != 1)),
    "an axis": lambda: Between(lambda n, x: x * torch.sum(x, axis=(2, 3), keepdim=True)),
    "one mask for all": lambda: Between(lambda n, x: x * x.sum(1, keepdim=True).sigmoid().expand_as(x)),
    "other positions": lambda: Between(sampled),
    "selected kernels": Selecting,
    "one layer that computes otherwise": Patched,
}


@pytest.mark.parametrize("what", MAKE)
def test_followed_exactly(what):
    assert "first" not in wiring_of_exact(MAKE[what]).left_whole


def test_layers_of_torchs_transformer():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    net = Between(
        lambda n, x: n.encoder(x.flatten(2).transpose(1, 2)).mean(1)[:, :, None, None],
        encoder=nn.TransformerEncoder(layer, 2),
    )
    net, images = net.double().eval(), torch.randn(3, 3, 8, 8).double()
    wiring = norton.wiring_of(net, images)
    inner = wiring.axis_of("encoder.layers.0.linear1")
    assert wiring.width(wiring.axis_of("first")) == 2  # heads
    assert not {inner, wiring.axis_of("first")} & set(wiring.frozen)
    small = norton.prune(net, {"*linear1": 0.5}, criterion="l2", example=images)
    with torch.no_grad():
        for index in range(2):
            kept = small.plan[-1]["keep"][f"encoder.layers.{index}.linear1"]
            gone = [i for i in range(24) if i not in kept]
            net.encoder.layers[index].linear1.weight[gone] = 0
            net.encoder.layers[index].linear1.bias[gone] = 0
        assert torch.allclose(small(images), net(images), atol=1e-12)


@pytest.mark.parametrize("norm_first", [False, True])
def test_decoders_of_torchs_transformer(norm_first):
    layer = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True, norm_first=norm_first)
    net = Between(
        lambda n, x: n.decoder(n.queries.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)).mean(1)[
            :, :, None, None
        ],
        decoder=nn.TransformerDecoder(layer, 2),
        queries=nn.Parameter(torch.randn(1, 5, 16)),
    )
    net, images = net.double().eval(), torch.randn(3, 3, 8, 8).double()
    wiring = norton.wiring_of(net, images)
    assert set(wiring.left_whole) == {"head"} and wiring.width(wiring.axis_of("first")) == 2  # heads
    keep = random_keep(wiring, 0)
    dead = with_dead_filters(net, wiring.gone_filters(keep))
    with torch.no_grad():  # the queries, to which the channels of attention are added, have no part in dead ones
        dead.queries[..., wiring.gone_filters(keep)["first"]] = 0
    small = cut(net, wiring, keep)
    assert largest_error(outputs(small, (images,)), outputs(dead, (images,))) < 1e-12
