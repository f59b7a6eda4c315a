"""Packed convolutions: the same as torch's, wherever they are taken."""

import copy

import pytest
import torch
from torch import fx, nn

from norton.packing import PackedConv2d, join_relus_, pack_

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


def test_torch_computes_where_the_operator_does_not_serve():
    conv, packed = pair(3, 4, 3, padding=1)
    packed.relu = True
    single = torch.randn(3, 5, 5)
    torch.testing.assert_close(packed(single), conv(single).relu())
    assert packed(torch.randn(0, 3, 5, 5)).shape == (0, 4, 5, 5)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(packed(x).sum(), x)
    (wanted,) = torch.autograd.grad(conv(x).relu().sum(), x)
    torch.testing.assert_close(grad, wanted)
    assert packed._packed is None
    exported = torch.export.export(packed, (x.detach(),)).module()
    torch.testing.assert_close(exported(x.detach()), conv(x.detach()).relu())
    double = packed.double()
    assert double(x.detach().double()).dtype == torch.float64 and double._packed is None


def test_what_is_packed_is_not_kept_with_old_weights():
    conv, packed = pair(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    packed(x)
    other = copy.deepcopy(packed)
    assert other._packed is None and packed._packed is not None and list(packed.state_dict()) == ["weight", "bias"]
    packed.load_state_dict({name: 2 * value for name, value in conv.state_dict().items()})
    torch.testing.assert_close(packed(x), 2 * conv(x))
    packed.to(torch.float64).to(torch.float32)
    torch.testing.assert_close(packed(x), 2 * conv(x))
    torch.testing.assert_close(other(x), conv(x))


def test_what_cannot_be_packed_stays():
    kept = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 3, 3, padding="same"), nn.Conv1d(3, 3, 1)
    )
    assert not any(isinstance(layer, PackedConv2d) for layer in pack_(kept))
    assert isinstance(pack_(nn.Sequential(nn.Conv2d(3, 3, 3)))[0], PackedConv2d)


class Branches(nn.Module):
    """ReLUs that may be computed with the convolution before them (`alone`, `parts`), and others that may not."""

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


def test_relus_join_the_convolution_that_they_alone_follow():
    torch.manual_seed(0)
    net, x = Branches().eval().requires_grad_(False), torch.randn(2, 4, 6, 6)
    wanted = net(x)
    joined = join_relus_(pack_(fx.symbolic_trace(copy.deepcopy(net))))
    torch.testing.assert_close(joined(x), wanted)
    assert [name for name, layer in joined.named_modules() if getattr(layer, "relu", False) is True] == [
        "alone",
        "parts.1",
    ]
    calls = [node.target for node in joined.graph.nodes if node.op != "placeholder"]
    assert calls.count("relu") == 2 and torch.relu not in calls
