"""Networks that only their own code describes are deployed exactly: control flow, assertions, lists, dictionaries."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.deployment import close, norms
from helpers.networks import randomise_
from torch import nn

import norton
from norton import InputError, deploy
from norton.common.errors import NortonWarning
from norton.deployment.assembling import assemble
from norton.deployment.export import to_onnx, to_program
from norton.deployment.folding import fold
from norton.deployment.int8 import to_int8
from norton.deployment.onnx_networks import OnnxNet

pytestmark = pytest.mark.quick


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Block(nn.Module):
    """A convolution, its norm and a ReLU, all of the kinds that torch has."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.norm, self.relu = conv(inputs, outputs, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, x):
        return self.relu(self.norm(self.conv(x)))


class Decides(nn.Module):
    """Pads to a multiple of 4, checks that it did, and keeps its stages in a plain list."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = Block(3, 8), Block(8, 8), conv(8, 4)
        self.stages = [self.one, self.two]

    def forward(self, x, scale=None):
        height, width = x.shape[-2:]
        if height % 4 or width % 4:
            x = F.pad(x, (0, -width % 4, 0, -height % 4))
        assert x.shape[-1] % 4 == 0, "not padded"
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        y = self.head(sum(maps) if scale is None else scale * sum(maps))
        return y[..., :height, :width].mean((2, 3)).view(y.shape[0], -1)


class Several(Decides):
    """Gives a dictionary, with a list in it."""

    def forward(self, x):
        first = self.one(x)
        second = self.two(first)
        return {"maps": [first, second], "out": self.head(second), "nothing": None}


class Twice(nn.Module):
    """Calls a block twice, every time with its norm."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = conv(3, 8), Block(8, 8), conv(8, 4)

    def forward(self, x):
        return self.last(self.again(self.again(self.first(x))))


class ReadElsewhere(nn.Module):
    """A norm whose parameters the network reads, and one whose statistics it does."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Block(3, 8), Block(8, 8)

    def forward(self, x):
        x = self.two(self.one(x))
        return x * self.one.norm.weight.view(1, -1, 1, 1) + self.two.norm.running_mean.sum()


class Function(nn.Module):
    """Calls the function with what its norm holds."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(3, 8), nn.BatchNorm2d(8)

    def forward(self, x):
        norm = self.norm
        return F.batch_norm(self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class NormAct(nn.BatchNorm2d):
    """A norm that drops and activates too."""

    def __init__(self, channels, act, eps=1e-3):
        super().__init__(channels, eps=eps)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x):
        x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Scaled(nn.BatchNorm2d):
    """A norm that does more than its modules do."""

    def forward(self, x):
        return 2 * super().forward(x)


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class WithEps(nn.BatchNorm2d):
    def __init__(self, channels):
        super().__init__(channels, eps=1e-2)


def then(norm):
    return nn.Sequential(conv(3, 8), norm, conv(8, 4))


class SharedNorm(nn.Module):
    """One norm behind two convolutions, and one convolution before two norms."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 8), conv(8, 8)
        self.norm, self.one, self.two = (nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x):
        x = self.norm(self.b(self.norm(self.a(x))))
        return self.two(self.c(self.one(self.c(x))))


def transposed(**options):
    return nn.Sequential(nn.ConvTranspose2d(4, 8, 3, 2, **options), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 3))


NETWORKS = {  # name → network, the norms that stay
    "decides": (Decides, []),
    "several": (Several, []),
    "twice": (Twice, []),
    "read elsewhere": (ReadElsewhere, ["one.norm", "two.norm"]),
    "function": (Function, ["norm"]),
    "activates": (lambda: then(NormAct(8, nn.SiLU())), []),
    "activates itself": (lambda: then(NormAct(8, Swish())), []),
    "scales": (lambda: then(Scaled(8)), ["1"]),
    "other eps": (lambda: then(WithEps(8)), []),
    "shared": (SharedNorm, ["norm", "one", "two"]),
    "transposed": (lambda: nn.Sequential(conv(3, 4), transposed()), []),
    "transposed in groups": (lambda: nn.Sequential(conv(3, 4), transposed(groups=2, bias=False)), []),
    "1-D": (lambda: nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8)), []),
    "3-D": (lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4)), []),
    "rows": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(90, 3), nn.BatchNorm1d(3)), ["2"]),
}


def tensors(outputs):
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if isinstance(outputs, list):
        return [x for value in outputs for x in tensors(value)]
    return [] if outputs is None else [outputs]


@pytest.mark.parametrize("name", NETWORKS)
def test_exact_in_both_memory_formats(name):
    torch.manual_seed(0)
    make, left = NETWORKS[name]
    net = randomise_(make()).double().eval()
    x = torch.randn(2, 3, 9, 10).double()
    folded = fold(net, x)
    assert norms(folded.net) == left
    for channels_last in (True, False):
        for images in (x, x[:1]):
            found, wanted = tensors(assemble(folded, {}, channels_last)(images)), tensors(net(images))
            assert found and len(found) == len(wanted)
            for own, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [Decides, Twice])
def test_from_end_to_end(make, tmp_path):
    torch.manual_seed(0)
    net, x = randomise_(make()).eval(), torch.randn(2, 3, 9, 10)
    small = norton.decompose(norton.prune(net, 0.3, criterion="l2", example=x), 2, starts=1, iterations=2)
    deployed = deploy(small, x, repeats=1)
    assert not norms(deployed) and len(deployed.deployment.forms) == 3
    for images in (x, torch.randn(1, 3, 12, 12)):
        close(deployed(images), small(images))
    again = deploy(small, x, choice=deployed.deployment)
    assert torch.equal(again(x), deployed(x))
    assert to_program(deployed, x, tmp_path / "net.pt2").difference < 1e-5
    assert to_onnx(deployed, x, tmp_path / "net.onnx").difference < 1e-5


@pytest.mark.parametrize("name", ["several", "1-D", "3-D", "transposed in groups"])
def test_exported_whatever_goes_in_and_comes_out(name, tmp_path):
    torch.manual_seed(0)
    net, x = randomise_(NETWORKS[name][0]()).eval(), torch.randn(4, 3, 9, 10)
    deployed = deploy(net, x, repeats=1)
    file = to_onnx(deployed, x, tmp_path / "net.onnx").path
    assert to_program(deployed, x, tmp_path / "net.pt2").difference < 1e-5
    assert to_int8(file, x, tmp_path / "int8.onnx").difference < 0.1
    wanted, program = tensors(net(x[:3])), torch.export.load(tmp_path / "net.pt2").module()
    for found in (OnnxNet(file)(x[:3]), tensors(program(x[:3]))):
        for own, other in zip([found] if torch.is_tensor(found) else found, wanted, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    names = {"several": ["maps_0", "maps_1", "out"]}.get(name, ["outputs"])
    assert [output.name for output in OnnxNet(file).session.get_outputs()] == names


class TwoInputs(nn.Module):
    """Two images, a number of its own type, and an option."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = Block(3, 8), Block(3, 8), conv(16, 4)

    def forward(self, x, other, place=None, *, twice=False):
        y = self.head(torch.cat([self.one(x), self.two(other["image"])], 1))
        y = 2 * y if twice else y
        return y if place is None else y[:, place]


@pytest.mark.parametrize("named", [True, False])
def test_several_inputs(named):
    torch.manual_seed(0)
    net = randomise_(TwoInputs()).eval()
    x, other, place = torch.randn(2, 3, 9, 10), {"image": torch.randn(2, 3, 9, 10)}, torch.tensor([2, 0])
    example = {"x": x, "other": other, "place": place, "twice": True} if named else (x, other)
    small = norton.decompose(net, 2, starts=1, iterations=2)
    deployed = deploy(small, example, repeats=1)
    assert not norms(deployed) and len(deployed.deployment.forms) == 3
    assert deployed.deployment.example == "2×3×9×10 float32 and 2×3×9×10 float32" + " and 2 int64" * named
    for batch in (2, 1):
        given = x[:batch], {"image": other["image"][:batch]}, place
        close(deployed(*given, twice=True), small(*given, twice=True))
        close(deployed(x=given[0], other=given[1]), small(*given[:2]))
    assert torch.equal(deploy(small, example, choice=deployed.deployment)(x, other), deployed(x, other))


def test_several_inputs_exported(tmp_path):
    torch.manual_seed(0)
    net = randomise_(TwoInputs()).eval()
    x, other = torch.randn(4, 3, 9, 10), {"image": torch.randn(4, 3, 9, 10)}
    file = to_onnx(deploy(net, (x, other), repeats=1), (x, other), tmp_path / "net.onnx").path
    to_program(net, {"x": x, "other": other}, tmp_path / "net.pt2")
    program = torch.export.load(tmp_path / "net.pt2").module()
    part, wanted = {"image": other["image"][:3]}, net(x[:3], {"image": other["image"][:3]})
    for found in (OnnxNet(file)(x[:3], part), OnnxNet(file)(other=part, x=x[:3]), program(x=x[:3], other=part)):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert to_int8(file, (x, other), tmp_path / "int8.onnx", batch_size=3).difference < 0.1
    with pytest.raises(InputError, match="1 tensors are given; the file takes x, other_image"):
        OnnxNet(file)(x)


def test_rounding_of_weights_out_of_proportion_is_no_error():
    """What is left of large numbers that cancel is rounding in the network itself."""
    torch.manual_seed(0)
    net, x = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)).eval(), torch.randn(2, 3, 8, 8)
    net[0].bias.data += 1e4
    net[1].running_mean += 1e4
    with pytest.warns(NortonWarning, match="the deployed network is exact, but its weights"):
        deployed = deploy(net, x, repeats=1)
    assert not norms(deployed)


class OtherWay(nn.Module):
    """The norm is left out for large images; `joined`: so is the ReLU."""

    def __init__(self, joined):
        super().__init__()
        self.block, self.joined = Block(3, 8), joined

    def forward(self, x):
        if x.shape[-1] < 16:
            return self.block(x)
        y = self.block.conv(x)
        return self.block.norm(y) + y if self.joined else y


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_another_way_at_another_size_is_refused(joined, channels_last):
    net, x = randomise_(OtherWay(joined)).eval(), torch.randn(2, 3, 8, 8)
    deployed = assemble(fold(net, x), {}, channels_last)
    close(deployed(x), net(x))
    close(copy.deepcopy(deployed)(x[..., :6]), net(x[..., :6]))
    large = torch.randn(2, 3, 16, 16)
    for _ in range(2):
        with pytest.raises(InputError, match=r"another way .* of 3×16×16 \(block.conv is used otherwise"):
            deployed(large)
    close(assemble(fold(net, large), {}, channels_last)(large), net(large))


class Values(nn.Module):
    """Decides by values, whether there is a norm."""

    def __init__(self):
        super().__init__()
        self.block = Block(3, 8)

    def forward(self, x):
        y = self.block.conv(x)
        return self.block.relu(self.block.norm(y) if y.mean() > 0 else y)


def test_networks_that_read_values_keep_their_norms():
    torch.manual_seed(0)
    net = randomise_(Values()).eval()
    deployed = deploy(net, torch.ones(2, 3, 8, 8), repeats=1)
    assert norms(deployed) == ["block.norm"]
    for sign in (1, -1):
        x = sign * torch.rand(2, 3, 8, 8)
        close(deployed(x), net(x))


class AsksNorm(nn.Module):
    """Asks a norm what it cannot tell when it is gone."""

    def __init__(self):
        super().__init__()
        self.block = Block(3, 8)

    def forward(self, x):
        assert self.block.norm.num_features == 8
        return self.block(x.to(self.block.norm.weight.dtype))


def test_norms_stay_that_code_asks_for():
    net, x = randomise_(AsksNorm()).eval(), torch.randn(2, 3, 8, 8)
    deployed = deploy(net, x, repeats=1)
    assert norms(deployed) == ["block.norm"]
    close(deployed(x), net(x))
