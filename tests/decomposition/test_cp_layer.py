"""The decomposed layer against the dense convolution of its reconstructed weight, and `decompose` on any module."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.geometries import GEOMETRIES
from torch import nn

import norton
from norton.decomposition.cp import CPConv2d


def literal_weight(layer):
    """W[o] = sum over r of head ∘ body ∘ tail, term by term from the published tensors."""
    filters, (kh, kw) = layer.out_channels, layer.kernel_size
    weight = torch.zeros(filters, layer.in_channels, kh, kw)
    for r, o in itertools.product(range(layer.rank), range(filters)):
        channel = r * filters + o
        a = layer.feature.pointwise.weight[channel, :, 0, 0]
        b = layer.feature.vertical.weight[channel, 0, :, 0]
        c = layer.feature.horizontal.weight[channel, 0, 0, :]
        weight[o] += torch.einsum("c,i,j->cij", a, b, c)
    return weight


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", ["factored", "grouped", "composed"])
def test_parity_with_the_dense_convolution(geometry, bias, form):
    conv = nn.Conv2d(4, 6, bias=bias, **geometry)
    layer = CPConv2d.shaped_like(conv, rank=2)
    if bias:
        nn.init.normal_(layer.bias)
        conv.bias.data = layer.bias.data.clone()
    conv.weight.data = literal_weight(layer).detach()
    layer.form = form
    x = torch.randn(2, 4, 13, 12)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["grouped", "composed"])
def test_gradients_agree_between_forms(form):
    layer = CPConv2d(4, 6, (3, 3), 2, padding=(1, 1))
    x, grads = torch.randn(2, 4, 8, 8), {}
    for each in ("factored", form):
        layer.form = each
        layer.zero_grad()
        layer(x).square().sum().backward()
        grads[each] = [p.grad.clone() for p in layer.parameters()]
    torch.testing.assert_close(grads["factored"], grads[form], rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """A network nobody prepared."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=2)
        self.body = nn.ModuleDict({"a": nn.Conv2d(8, 8, (1, 3), dilation=2), "b": nn.Conv2d(8, 12, 1)})
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12)
        self.head = nn.Sequential(nn.Conv2d(12, 4, 3, bias=False))

    def forward(self, x):
        return self.head(self.depthwise(self.body["b"](self.body["a"](self.stem(x)))))


def ranks(net):
    return {name: layer.rank for name, layer in net.named_modules() if isinstance(layer, CPConv2d)}


def test_any_module_and_which_layers():
    net = Odd()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    small = norton.decompose(net, 2)
    assert ranks(small) == {"stem": 2, "body.a": 2, "head.0": 2}
    assert small(torch.randn(1, 3, 30, 30)).shape == net(torch.randn(1, 3, 30, 30)).shape
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert ranks(norton.decompose(net, 2, skip=["stem"])) == {"body.a": 2, "head.0": 2}
    assert ranks(norton.decompose(net, {"stem": None, "body.*": 1, "*": 3})) == {"body.a": 1, "head.0": 3}
    assert ranks(norton.decompose(net, {"head*": 3})) == {"head.0": 3}


def test_decomposed_layers_are_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 4, 3))  # one filter at rank 1: its parts are not grouped
    once = norton.decompose(net, {"0": 1})
    twice = norton.decompose(once, {"*": 1})
    assert ranks(twice) == {"0": 1, "1": 1}
    with pytest.raises(norton.InputError, match="no layer of"):
        norton.decompose(twice, 1)


def test_a_shared_convolution_stays_shared():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), conv)
    small = norton.decompose(net, 9)
    assert small[0] is small[2]
    assert isinstance(small[0], CPConv2d)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(small(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_bare_convolution():
    conv = nn.Conv2d(4, 4, 3)
    x = torch.randn(1, 4, 6, 6)
    torch.testing.assert_close(norton.decompose(conv, 9)(x), conv(x), rtol=1e-4, atol=1e-4)


def test_forms_are_checked():
    with pytest.raises(norton.InputError, match="choose one of factored, grouped, composed, fast"):
        norton.set_form_(norton.build("resnet_56", 1), "dense")


def test_resnet_50_spares_its_stem():
    net = norton.build("resnet_50")
    with torch.device("meta"):
        small = norton.build("resnet_50", 1)
    assert "conv1" not in ranks(small)
    assert len(ranks(small)) == 16
    assert "conv1" in norton.decomposition.layer_ranks(net, 1, skip=[])


@pytest.mark.parametrize("arguments, message", [
    ({"rank": 0}, "stem: rank 0"),
    ({"rank": -2}, "rank -2"),
    ({"rank": 26}, "stem: rank 26 exceeds 25"),
    ({"rank": 4}, "body.a: rank 4 exceeds 3, at which a 1x3"),
    ({"rank": 1.5}, "rank 1.5"),
    ({"rank": True}, "rank True"),
    ({"rank": 1, "skip": ["layer*"]}, r"pattern 'layer\*' matches no convolution.*stem"),
    ({"rank": {"nix": 1}}, "pattern 'nix'"),
    ({"rank": 1, "method": "nix"}, "unknown decomposition 'nix'"),
    ({"rank": 1, "starts": 0}, "starts is 0"),
    ({"rank": 1, "begins": 2}, "has no option begins; it has starts"),
    ({"rank": 1, "skip": ["*"]}, "no layer of Odd is left"),
])  # fmt: skip
def test_bad_input(arguments, message):
    with pytest.raises(norton.InputError, match=message):
        norton.decompose(Odd(), **arguments)


def test_a_weight_that_is_not_finite_is_named():
    net = Odd()
    net.body["a"].weight.data[3, 0, 0, 1] = float("inf")
    with pytest.raises(norton.InputError, match=r"body\.a"):
        norton.decompose(net, 2)


def test_nmse_is_the_literal_mean_over_filters_then_layers():
    net = Odd()
    net.head[0].weight.data[1] = 0
    small = norton.decompose(net, 1)
    per_layer = []
    for name in ranks(small):
        w, approximation = net.get_submodule(name).weight, literal_weight(small.get_submodule(name))
        errors = [
            ((w[o] - approximation[o]).square().sum() / w[o].square().sum()).item() for o in range(len(w)) if w[o].any()
        ]
        per_layer.append(sum(errors) / len(errors))
    assert norton.nmse(net, small) == pytest.approx(sum(per_layer) / len(per_layer), rel=1e-4)
    assert not literal_weight(small.head[0])[1].any()


def test_nmse_of_networks_that_do_not_match():
    net = norton.build("resnet_56")
    with pytest.raises(norton.InputError, match="no decomposed layer"):
        norton.nmse(net, net)
    with pytest.raises(norton.InputError, match="compare before pruning"):
        norton.nmse(net, norton.build("resnet_56", 1, "[0.]+[0.2]*29"))


def test_half_precision_and_mode_are_kept():
    net = Odd().half().eval()
    small = norton.decompose(net, 2)
    assert {p.dtype for p in small.parameters()} == {torch.float16}
    assert not small.stem.training


def test_seed_decides():
    a, b, c = (norton.decompose(Odd().apply(_constant), 2, seed=s).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert a.keys() == c.keys()


def _constant(module):
    if isinstance(module, nn.Conv2d):
        generator = torch.Generator().manual_seed(module.weight.numel())
        module.weight.data = torch.randn(module.weight.shape, generator=generator)
        module.bias = None if module.bias is None else nn.Parameter(torch.zeros_like(module.bias))


def test_pooled_forms_equal_functional():
    """`grouped` and `composed` are one convolution each: compare with torch's on the literal weight."""
    layer = CPConv2d(3, 5, (3, 3), 4, padding=(1, 1), bias=False)
    x = torch.randn(1, 3, 6, 6)
    torch.testing.assert_close(layer(x), F.conv2d(x, literal_weight(layer), padding=1), rtol=1e-4, atol=1e-5)
