"""Packed convolutions: the same as torch's, wherever they are taken."""

import copy

import pytest
import torch
from torch import fx, nn

import norton
from norton.deployment.assembling import assemble
from norton.deployment.folding import fold
from norton.deployment.onednn import JoinedReLU, PackedConv2d, pack_
from norton.measure.counting import CONVENTIONS

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN")
LAST = {"memory_format": torch.channels_last}


def pair(*args, **kwargs) -> tuple[nn.Conv2d, PackedConv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(*args, **kwargs).eval().requires_grad_(False)
    return conv, pack_(copy.deepcopy(conv).to(**LAST))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1), "padding": (1, 0), "stride": (2, 1)},
        {"kernel_size": (1, 3), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": 3, "groups": 3},
        {"kernel_size": 3, "padding": 1, "groups": 6, "stride": 2},
    ],
    ids=str,
)
def test_same_as_torch(geometry, bias, relu):
    conv, packed = pair(6, 12, bias=bias, **geometry)
    packed.relu = relu
    for size in ((2, 6, 9, 7), (5, 6, 9, 7), (1, 6, 16, 16), (2, 6, 9, 7)):
        x = torch.randn(size).to(**LAST)
        wanted = conv(x).relu() if relu else conv(x)
        before = x.clone()
        torch.testing.assert_close(packed(x), wanted, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(packed(x.contiguous()), wanted, rtol=1e-5, atol=1e-6)
        assert torch.equal(x, before)
    assert packed._packed is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_torch_computes_where_the_operator_does_not_serve():
    conv, packed = pair(3, 4, 3, padding=1)
    packed.relu = True
    single = torch.randn(3, 5, 5)
    torch.testing.assert_close(packed(single), conv(single).relu())
    assert packed(torch.randn(0, 3, 5, 5)).shape == (0, 4, 5, 5)
    x = torch.randn(2, 3, 5, 5)
    traced = torch.jit.trace(packed, x, check_trace=False)
    for program in (torch.export.export(packed, (x,)).module(), traced, fx.symbolic_trace(packed)):
        torch.testing.assert_close(program(x), conv(x).relu())
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="to have 3 channels, but got 4"):
        packed(torch.randn(2, 4, 5, 5))
    double = packed.double()
    assert double(x.double()).dtype == torch.float64
    assert packed._packed is None


def test_derivatives_are_torchs():
    conv, packed = pair(3, 4, 3, padding=1)
    x, along = torch.randn(2, 3, 5, 5), torch.randn(2, 3, 5, 5)
    packed(x)
    for own, wanted in zip(torch.func.jvp(packed, (x,), (along,)), torch.func.jvp(conv, (x,), (along,)), strict=True):
        torch.testing.assert_close(own, wanted)
    for layer in (conv, packed):
        layer.bias.requires_grad_()
        layer(x).square().sum().backward()
    torch.testing.assert_close(packed.bias.grad, conv.bias.grad)
    x.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(layer(x).square().sum(), x) for layer in (packed, conv)))


def test_what_is_packed_is_not_kept_with_old_weights():
    conv, packed = pair(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    twice = {name: 2 * value for name, value in conv.state_dict().items()}
    fresh = copy.deepcopy(packed)
    torch.testing.assert_close(torch.func.functional_call(fresh, twice, x), 2 * conv(x))  # before its own first pass
    torch.testing.assert_close(fresh(x), conv(x))
    torch.testing.assert_close(torch.func.functional_call(fresh, twice, x), 2 * conv(x))
    other = copy.deepcopy(fresh)
    assert other._packed is None and fresh._packed is not None and list(fresh.state_dict()) == ["weight", "bias"]
    packed(x)
    packed.load_state_dict(twice)
    torch.testing.assert_close(packed(x), 2 * conv(x))
    packed.to(torch.float64).to(torch.float32)
    torch.testing.assert_close(packed(x), 2 * conv(x))
    packed.weight.mul_(0.5)
    packed.bias.mul_(0.5)
    torch.testing.assert_close(packed(x), conv(x))
    packed.weight = nn.Parameter(-conv.weight, requires_grad=False)
    torch.testing.assert_close(packed(x), 2 * conv.bias.view(-1, 1, 1) - conv(x))
    torch.testing.assert_close(other(x), conv(x))


def test_what_is_not_a_number_is_zero_after_relu():
    """As oneDNN has it: documented, for torch's ReLU keeps it."""
    _, packed = pair(3, 4, 3)
    x = torch.randn(1, 3, 5, 5)
    x[0, 0, 2, 2] = torch.nan
    assert packed(x).isnan().all()
    packed.relu = True
    assert not packed(x).isnan().any()


def test_what_cannot_be_packed_stays():
    kept = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same"), nn.Conv1d(3, 3, 1)
    )
    assert not any(isinstance(layer, PackedConv2d) for layer in pack_(kept))
    assert isinstance(pack_(nn.Sequential(nn.Conv2d(3, 3, 3)))[0], PackedConv2d)


class Branches(nn.Module):
    """ReLUs that may be computed with the convolution before them (`parts`), and others that may not."""

    def __init__(self):
        super().__init__()
        self.alone, self.twice, self.split = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(3))
        self.parts = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 3, padding=1))
        self.again = nn.Sequential(nn.Conv2d(4, 4, 1), self.twice)  # the same layer under another name
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.relu(self.parts(torch.relu(self.alone(x))))
        x = self.again(self.relu(self.twice(x)))
        y = self.split(x)
        return y.relu() + y


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_counted_as_a_convolution_and_its_relu(convention):
    conv, packed = pair(3, 4, 3)
    packed.relu = True
    nets = conv, nn.Sequential(packed, JoinedReLU())
    wanted, own = (norton.complexity(net, (3, 8, 8), convention=convention) for net in nets)
    relu = 4 * 6 * 6 if convention == "norton" else 0
    assert (
        own.macs == wanted.macs + relu == {"norton": 4 * 36 * 29, "macs": 4 * 36 * 27, "thop": 4 * 36 * 27}[convention]
    )


def test_relus_join_the_convolution_that_they_alone_follow():
    torch.manual_seed(0)
    net, x = Branches().eval().requires_grad_(False), torch.randn(2, 4, 6, 6)
    wanted = net(x)
    folded = fold(net, x)
    joined = assemble(folded, {}, channels_last=True)
    for _ in range(2):
        torch.testing.assert_close(joined(x), wanted)
    assert [name for name, layer in joined.named_modules() if getattr(layer, "relu", False) is True] == ["parts.1"]
    assert "relu=True" in str(joined.parts) and "relu=True" not in str(joined.split)


class InPlace(nn.Module):
    """What a ReLU gives is changed in place, and rectified once more."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.conv(x))
        y -= 0.5
        return self.relu(y)


def test_what_changes_in_place_is_rectified_again():
    torch.manual_seed(0)
    net, x = InPlace().eval().requires_grad_(False), torch.randn(2, 4, 6, 6)
    joined = assemble(fold(net, x), {}, channels_last=True)
    assert joined.conv.relu
    torch.testing.assert_close(joined(x), net(x))
