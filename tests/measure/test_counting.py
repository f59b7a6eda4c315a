"""What a network executes is what is counted: against torch's FlopCounterMode, and by hand."""

import math
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.hand_made import HAND_MADE, Net, conv
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import norton
from norton.deployment.onednn import pack_
from norton.measure.counting import complexity


class Conv3x3(nn.Conv2d):
    """A kind of convolution that thop does not know."""

    def __init__(self, inputs, filters):
        super().__init__(inputs, filters, 3, padding=1, bias=False)


class BatchNormAndReLU(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width)
        self.act = nn.ReLU()

    def forward(self, input):
        return self.act(super().forward(input))


class Sequences(nn.Module):
    """Attention of both kinds, and recurrent layers, over the positions of an image; `deciding`: by values."""

    input_size = (3, 6, 6)

    def __init__(self, deciding=False):
        super().__init__()
        self.deciding, self.conv = deciding, conv(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        self.lstm = nn.LSTM(8, 5, 2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(10, 3)

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)
        if self.deciding and y.sum() > 1000:
            return y
        z = F.scaled_dot_product_attention(y, y, y)
        return self.gru(self.lstm(self.encoder(self.attention(y, y, z)[0]))[0])[0]


class Filtered(nn.Module):
    """Convolutions with weights that are read, held outside of layers and computed, and matrix products."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.inner = conv(3, 6), nn.Sequential(conv(6, 6))
        self.kernel, self.mix = nn.Parameter(torch.ones(4, 6, 1, 1)), nn.Parameter(torch.ones(64, 10))

    def forward(self, x):
        y = F.conv2d(x, self.first.weight, padding=1) + self.first(x)
        y = F.conv2d(self.inner(y), self.kernel * 2, torch.ones(4))
        return torch.einsum("nch,ho->nco", y.flatten(2), self.mix) @ torch.ones(10, 2)


class Inferring(nn.Module):
    """Enters inference mode itself, where torch hands over operations whole; adds a tensor that it makes."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.conv, self.fc = conv(3, 4), nn.Linear(8, 2)

    @torch.inference_mode()
    def forward(self, x):
        return self.fc(self.conv(x) + torch.arange(8.0)).sum()


class Hidden(nn.Module):
    """Runs layers that it keeps in a list, where they are not registered."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.layers, self.unused = [conv(3, 4), nn.BatchNorm2d(4), nn.ReLU()], nn.Linear(2, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class SeveralInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.embedding = conv(3, 4), nn.Linear(6, 4), nn.Embedding(10, 4)

    def forward(self, image, numbers=None, *, gain=1.0, ids=None):
        y = self.conv(image).mean((2, 3)) * gain
        y = y if numbers is None else y + self.fc(numbers)
        return y if ids is None else y + self.embedding(ids)


def flops(net, *inputs):
    """FlopCounterMode's MACs; it does not know what torch does for attention and recurrence on a CPU at once."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with ExitStack() as entered:
        entered.callback(torch.backends.mha.set_fastpath_enabled, before)
        if isinstance(net, Sequences):
            entered.enter_context(torch.backends.mkldnn.flags(enabled=False, allow_tf32=None))
        entered.enter_context(sdpa_kernel(SDPBackend.MATH))
        entered.enter_context(torch.no_grad())
        counter = entered.enter_context(FlopCounterMode(display=False))
        net.eval()(*inputs)
    return counter.get_total_flops() / 2


def consistent(cost):
    assert sum(layer.macs for layer in cost.by_layer.values()) == cost.macs
    assert sum(layer.params for layer in cost.by_layer.values()) >= cost.params  # shared ones are held twice
    return cost


NETS = {
    **{name: build for name, (build, *_) in HAND_MADE.items() if name != "a constant per channel"},
    "sequences": Sequences,
    "filtered": Filtered,
    "inferring": Inferring,
    "hidden": Hidden,
    **{arch: lambda arch=arch: norton.build(arch) for arch in ("vgg_16_bn", "resnet_56", "densenet_40")},
    **{f"{arch} at rank 2": lambda arch=arch: norton.build(arch, 2) for arch in ("vgg_16_bn", "resnet_56")},
}


@pytest.mark.parametrize("name", NETS)
def test_macs_are_those_that_torch_counts(name):
    net = NETS[name]()
    assert consistent(complexity(net, convention="macs")).macs == flops(net, torch.zeros(1, *net.input_size))
    assert consistent(complexity(net)).macs >= complexity(net, convention="macs").macs > 0


def torchvisions(arch):
    return lambda: torchvision.models.get_model(arch, weights=None)


LARGE = {
    **{
        f"{arch} at rank {rank}": (lambda arch=arch, rank=rank: norton.build(arch, rank), None)
        for arch in ("resnet_110", "resnet_50")
        for rank in (0, 2)
    },
    "densenet_40 at rank 2": (lambda: norton.build("densenet_40", 2), None),
    **{arch: (torchvisions(arch), 64) for arch in ("regnet_y_400mf", "convnext_tiny", "swin_t", "mnasnet0_5")},
    "vit_b_16": (torchvisions("vit_b_16"), 224),
}


@pytest.mark.parametrize("name", LARGE)
def test_macs_of_large_networks_are_those_that_torch_counts(name):
    build, side = LARGE[name]
    net = build().to("meta")  # where torch computes nothing either
    size = (3, side, side) if side else net.input_size
    cost = consistent(complexity(net, size, convention="macs"))
    assert cost.macs == flops(net, torch.zeros(1, *size, device="meta"))


@pytest.mark.quick
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride, groups", [(1, 1), (2, 1), (2, 2), (3, 4)])
def test_convolutions_by_hand(dims, stride, groups):
    """One multiplication per output, input channel of its group and place in the kernel; transposed, per input."""
    plain, transposed = ((getattr(nn, f"{kind}{dims}d")) for kind in ("Conv", "ConvTranspose"))
    side, filters, kernel = 7, 8, 3**dims
    for bias in (False, True):
        layer = plain(4, filters, 3, stride, groups=groups, bias=bias)
        outputs = filters * math.ceil((side - 2) / stride) ** dims
        assert complexity(layer, (4, *[side] * dims), convention="macs").macs == outputs * kernel * 4 // groups
        assert complexity(layer, (4, *[side] * dims)).macs == outputs * (kernel * 4 // groups + bias)
        layer = transposed(4, filters, 3, stride, groups=groups, bias=bias)
        macs = 4 * side**dims * kernel * filters // groups
        outputs = filters * ((side - 1) * stride + 3) ** dims
        assert complexity(layer, (4, *[side] * dims), convention="macs").macs == macs
        assert complexity(layer, (4, *[side] * dims)).macs == macs + outputs * bias


@pytest.mark.quick
def test_subclasses_count_as_what_they_are():
    net = nn.Sequential(Conv3x3(3, 8), BatchNormAndReLU(8), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5))
    cost = consistent(complexity(net, (3, 8, 8)))
    assert {name: layer.macs for name, layer in cost.by_layer.items()} == {
        "0": 64 * 8 * 27,
        "1": 2 * 512,
        "1.act": 512,
        "2": 512,
        "3": 0,
        "4": 128 * 5 + 5,
    }


def test_pooling_and_norms_of_one_and_three_dimensions():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.AvgPool1d(2), nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(1))
    assert complexity(net, (2, 8)).macs == 2 * 16 + 16 + 8 + 4
    net = nn.Sequential(nn.BatchNorm3d(2), nn.AvgPool3d(2), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(1))
    assert complexity(net, (2, 8, 8, 8)).macs == 2 * 1024 + 1024 + 128 + 16
    assert complexity(net, (2, 8, 8, 8), convention="macs").macs == 0


@pytest.mark.quick
def test_operations_count_for_the_module_whose_code_they_are_in():
    cost = complexity(Filtered(), convention="macs")
    assert {name: (layer.macs, layer.params) for name, layer in cost.by_layer.items()} == {
        "": (64 * 6 * 27 + 64 * 4 * 6 + 4 * 64 * 10 + 4 * 10 * 2, 4 * 6 + 64 * 10),
        "first": (64 * 6 * 27, 6 * 28),
        "inner.0": (64 * 6 * 54, 6 * 55),
    }
    assert "(itself)" in str(cost) and "first" in str(cost)


@pytest.mark.quick
def test_layers_come_in_forward_order_and_those_that_do_not_run_last():
    net = Net(lambda m, x: m.b(m.a(x)), never=nn.Linear(2, 2), b=conv(4, 4), a=conv(3, 4))
    cost = complexity(net)
    assert list(cost.by_layer) == ["a", "b", "never"] and cost.by_layer["never"] == type(cost.by_layer["a"])(0, 6)


@pytest.mark.quick
def test_a_layer_called_twice_and_under_two_names_counts_as_often_as_it_runs():
    layer = conv(3, 3)
    net = nn.Sequential(layer, nn.Sequential(layer, nn.ReLU()), layer)
    cost = consistent(complexity(net, (3, 4, 4), convention="macs"))
    assert cost.macs == cost.by_layer["0"].macs == 3 * 16 * 81


def test_layers_that_are_not_registered_count_for_the_module_that_calls_them():
    cost = complexity(Hidden())
    assert cost.by_layer[""].macs == cost.macs == 256 * (28 + 2 + 1)
    assert cost.params == 6


def test_a_parametrised_layer_is_one_row():
    net = nn.Sequential(nn.utils.parametrizations.spectral_norm(conv(3, 4)), nn.ReLU())
    cost = consistent(complexity(net, (3, 8, 8)))
    assert cost.by_layer["0"].macs == 256 * 28 and list(cost.by_layer) == ["0", "1"]


@pytest.mark.parametrize("convention", ["norton", "macs"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_network_that_decides_by_values_is_counted_on_the_cpu(convention, packed):
    whole, deciding = Sequences(), Sequences(deciding=True)
    if packed:
        pack_(deciding)
    assert complexity(deciding, convention=convention) == complexity(whole, convention=convention)


def test_counting_leaves_the_network_and_torch_as_they_were():
    net = Sequences(deciding=True).train().double()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    complexity(net)
    assert net.training and all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()
    assert not nn.modules.module._global_forward_hooks and not nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_any_precision(dtype):
    net = HAND_MADE["a gate"][0]()
    assert complexity(net.to(dtype)) == complexity(net.float())


def test_nothing_is_computed():
    """Over 10^15 MACs, and outputs of 64 GB."""
    with torch.device("meta"):
        net = nn.Sequential(conv(1, 4096), conv(4096, 4096))
    assert complexity(net, (1, 2048, 2048), convention="macs").macs == 2**22 * 9 * (2**12 + 2**24)


@pytest.mark.quick
def test_an_example_of_several_inputs():
    net, image, numbers = SeveralInputs(), torch.zeros(1, 3, 8, 8), torch.zeros(1, 6)
    alone = 256 * 28
    assert complexity(net, (3, 8, 8)).macs == complexity(net, example=image).macs == alone
    assert complexity(net, example=torch.zeros(2, 3, 8, 8)).macs == 2 * alone  # as it is
    both = complexity(net, example=(image, numbers))
    assert both.macs == alone + 28
    named = {"image": image, "numbers": numbers, "ids": torch.tensor([3]), "gain": 2.0}
    assert complexity(net, example=named) == both
    images = Net(lambda m, x: [m.a(image) for image in x], a=conv(3, 4))
    assert complexity(images, example=([image[0], image],)).macs == 2 * alone
    assert norton.summary(net, example=(image, numbers)).complexity == both


def test_an_example_has_values_where_a_network_asks_for_them():
    net = Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=conv(3, 4))
    assert complexity(net).macs == 0
    assert (
        complexity(net, example=torch.ones(1, 3, 16, 16)).macs
        == complexity(HAND_MADE["plain"][0]()).by_layer["a"].macs - 4 * 256 * 28
    )
    positive = torch.ones(1, 3, 16, 16)
    assert complexity(net, example=positive).macs == 4 * 256 * 28
    assert complexity(net, example={"x": positive}, convention="thop").macs == 4 * 256 * 27


@pytest.mark.parametrize("given, message", [
    ({"example": (1, 2.0)}, "example is .*give an input, its size .*, a tuple of several inputs, or a dict"),
    ({"example": ([], ())}, "give an input, its size .*, a tuple of several"),
    ({"example": "image"}, "example is 'image'; give an input"),
    ({"example": torch.zeros(1, 3, 4, 4), "input_size": (3, 4, 4)}, "both input_size and example are given"),
    ({"input_size": (4, 8, 8)}, r"cannot take an input of size 1×4×8×8: .*expected input\[1, 4, 8, 8\] to have 3"),
    ({"example": (torch.zeros(1, 3, 4, 4), torch.zeros(2))}, r"input of size 1×3×4×4, 2: "),
    ({"convention": "flops"}, "unknown counting convention 'flops'"),
])  # fmt: skip
def test_bad_input(given, message):
    with pytest.raises(norton.InputError, match=message):
        complexity(HAND_MADE["plain"][0](), **given)


def test_wrapped_networks_count_as_what_is_in_them():
    net = HAND_MADE["plain"][0]()
    wanted = complexity(net)
    assert complexity(nn.DataParallel(net), (3, 16, 16)) == complexity(torch.compile(net), (3, 16, 16)) == wanted
    assert norton.summary(nn.DataParallel(net)).complexity == wanted


@pytest.mark.parametrize("deciding", [False, True])
def test_weights_that_hooks_compute(deciding):
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(conv(3, 4))
    layer(torch.zeros(1, 3, 4, 4))  # which leaves a weight with gradients behind
    net = Net(lambda m, x: m.a(x * (2 if deciding and x.sum() > 0 else 1)), a=layer)
    assert complexity(net).macs == 4 * 256 * 28


def test_a_layer_without_weights_yet():
    with pytest.raises(norton.InputError, match=r"1\.weight has no size before the network runs once"):
        complexity(nn.Sequential(nn.ReLU(), nn.LazyConv2d(4, 3)), (3, 8, 8))


@pytest.mark.quick
def test_a_network_without_a_size():
    with pytest.raises(norton.InputError, match=r"Conv2d states no input size; pass input_size=.*, or example="):
        complexity(conv(3, 4))


def test_the_summary_shows_layers_of_every_dimension():
    net = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ConvTranspose1d(4, 3, 2, 2))
    assert [(row.kind, row.filters) for row in norton.summary(net, (2, 10)).layers] == [
        ("Conv1d", 4),
        ("ConvTranspose1d", 3),
    ]
