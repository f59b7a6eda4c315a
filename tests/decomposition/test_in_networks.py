"""Decomposed layers in networks as people write them: frozen, held in lists, read by the network, normed, wrapped."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import spectral_norm, weight_norm
from torch.nn.utils.fusion import fuse_conv_bn_eval

import norton
from norton import InputError
from norton.common.errors import NortonWarning
from norton.decomposition.methods import DECOMPOSITIONS
from norton.graph.layers import is_decomposed, network_in

SPATIAL = sorted(set(DECOMPOSITIONS) - {"svd"})
FULL = {"fraction": 1.0}


def decomposed(net):
    return [name for name, layer in net.named_modules(remove_duplicate=False) if is_decomposed(layer)]


def close(found, wanted):
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def small_net(method):
    size = 1 if method == "svd" else 3
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, size), nn.ReLU(), nn.Conv2d(6, 6, size)), torch.randn(4, 3, 8, 8)


@pytest.mark.parametrize("objective", ["weights", "outputs"])
@pytest.mark.parametrize("method", [*SPATIAL, "svd"])
@pytest.mark.filterwarnings("ignore:4 images have fewer patches")
def test_what_was_frozen_stays_frozen(method, objective):
    net, x = small_net(method)
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    small = norton.decompose(net, 1, method, objective=objective, images=x)
    for name, parameter in small.named_parameters():
        layer, _, key = name.partition(".")
        assert parameter.requires_grad == ((layer == "0") == (key == "bias")), name
    small(x).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in small.parameters())


class Steps(nn.Module):
    """Layers in a list, a dictionary and a second attribute, under names that nn.Module has for itself."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4, 4))
        self.modules, self.buffers = [self.a, ("b", self.b)], {"c": [self.c]}
        self.__dict__["last"] = self.d

    def forward(self, x):
        for layer in (self.modules[0], self.modules[1][1], *self.buffers["c"], self.last):
            x = layer(x).relu()
        return x


@pytest.mark.parametrize("objective", ["weights", "outputs"])
def test_layers_in_lists_are_replaced_there(objective):
    torch.manual_seed(0)
    net, x, ran = Steps(), torch.randn(2, 3, 8, 8), []
    small = norton.decompose(net, 1, objective=objective, images=x)
    for layer in small._modules.values():
        layer.register_forward_hook(lambda layer, *_: ran.append(layer))
    small(x)
    assert ran == [small.a, small.b, small.c, small.d] and all(map(is_decomposed, ran))
    close(norton.decompose(net, FULL, objective=objective, images=x)(x), net(x))


def test_a_checkpoint_replaces_them_too(tmp_path):
    net, x = Steps(), torch.randn(2, 3, 8, 8)
    small = norton.decompose(net, 2)
    norton.save(small, tmp_path / "net.pt")
    assert torch.equal(norton.load(tmp_path / "net.pt", net=net)(x), small(x))


class Reads(nn.Module):
    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.b(F.conv2d(x, self.a.weight, self.a.bias).relu())


class Guesses(Reads):
    """What it computes depends on values, so that it cannot be run without."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


def test_layers_whose_weight_is_read_are_left_whole():
    torch.manual_seed(0)
    net, x = Reads(), torch.randn(2, 3, 8, 8)
    with pytest.warns(NortonWarning, match=r"1 of 2 layers left whole: a: the network takes its weight .*F.conv2d"):
        small = norton.decompose(net, FULL)
    assert decomposed(small) == ["b"]
    close(small(x), net(x))
    with pytest.raises(InputError, match="no layer that is asked for can be decomposed: a: the network takes"):
        norton.decompose(net, {"a": 1})


def test_a_layer_that_a_function_holds_is_left_whole():
    net = Reads()
    net.forward = lambda images: net.b(net.a(images).relu())  # of this network, also in a copy
    with pytest.raises(InputError, match=r"can be decomposed: a: the network takes .*; b: the network takes"):
        norton.decompose(net, FULL)


def test_a_network_that_cannot_be_run_reads_the_composed_weight():
    torch.manual_seed(0)
    net, x = Guesses(), torch.randn(2, 3, 8, 8)
    small = norton.decompose(net, FULL)
    assert decomposed(small) == ["a", "b"]
    close(small(x), net(x))


class CallsAndReads(Reads):
    def forward(self, x):
        return self.b(self.a(x).relu()) * self.a.weight.square().sum()


def test_a_decomposed_layer_whose_weight_is_read_is_neither_pruned_nor_packed():
    torch.manual_seed(0)
    net, x = CallsAndReads().eval(), torch.randn(2, 3, 8, 8)
    net.a = norton.decompose(nn.Sequential(net.a), 2)[0].eval()
    assert "a" in norton.wiring_of(net).left_whole
    close(norton.deploy(net, x, repeats=1)(x), net(x))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("objective", ["weights", "outputs"])
@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_weights_that_hooks_compute_are_new(norm, objective):
    torch.manual_seed(0)
    net, other = (nn.Sequential(norm(nn.Conv2d(3, 4, 3)), norm(nn.Conv2d(4, 4, 1))).eval() for _ in range(2))
    x = torch.randn(8, 3, 8, 8)
    net(x)
    net.load_state_dict(other.state_dict())
    small = norton.decompose(net, FULL, objective=objective, images=x)
    assert decomposed(small) == ["0"] and small[0].feature[0].weight.requires_grad
    close(small(x), other(x))
    assert norton.nmse(net, small) < 1e-6


def test_weights_that_other_hooks_compute_stay_whole():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[0].source = nn.Parameter(net[0].weight.detach())
    del net[0].weight
    net[0].register_forward_pre_hook(lambda layer, inputs: setattr(layer, "weight", layer.source * inputs[0].mean()))
    x = torch.ones(1, 3, 8, 8)
    net(x)
    with pytest.warns(NortonWarning, match="left whole: 0: its weight is no parameter"):
        small = norton.decompose(net, FULL)
    close(small(x), net(x))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_wrapped_networks_stay_wrapped(wrap):
    net, x = small_net("cp")
    net.input_size = (3, 8, 8)
    small = norton.decompose(wrap(net), FULL)
    assert type(small) is type(wrap(net)) and decomposed(network_in(small)) == ["0", "2"]
    close(small(x), net(x))
    pruned = norton.prune(wrap(net), {"0": 0.5}, "l2", options=norton.PruneOptions(min_filters=1))
    assert type(pruned) is type(wrap(net)) and network_in(pruned)[0].out_channels == 3
    assert torch.equal(pruned(x), norton.prune(net, {"0": 0.5}, "l2", options=norton.PruneOptions(min_filters=1))(x))
    close(norton.deploy(wrap(net.eval()), x, repeats=1)(x), net(x))


@pytest.mark.parametrize("verb", [norton.decompose, norton.prune])
def test_networks_without_layers_say_what_to_pass(verb):
    net, x = small_net("cp")
    scripted, exported = torch.jit.trace(net, x), torch.export.export(net, (x,)).module()
    for bare, message in ((scripted, "TorchScript"), (exported, "torch.export")):
        with pytest.raises(InputError, match=f"{message}.*pass the one it was made from"):
            verb(bare, 0.5 if verb is norton.prune else 1)


@pytest.mark.parametrize(
    ("method", "layer", "told"),
    [
        ("tt", nn.Conv1d(3, 4, 3), "a 1-D convolution with a kernel of 3, of 3 to 4 channels"),
        ("tt", nn.Conv3d(3, 4, 3), "a 3-D convolution with a kernel of 3x3x3, of 3 to 4 channels"),
        ("tt", nn.Conv2d(4, 4, 3, groups=2), "a 3x3 convolution of 4 to 4 channels in 2 groups"),
        ("cp", nn.ConvTranspose2d(3, 4, 3), "a transposed 3x3 convolution of 3 to 4 channels"),
        (
            "tucker",
            nn.Conv1d(4, 8, 3, groups=4),
            "a 1-D convolution with a kernel of 3, of 4 to 8 channels in 4 groups",
        ),
        ("svd", nn.Conv1d(3, 4, 3), "a 1-D convolution with a kernel of 3, of 3 to 4 channels"),
    ],
)
@pytest.mark.parametrize("rank", [1, {"0": 1}])
def test_other_convolutions_are_named(method, layer, told, rank):
    with pytest.raises(InputError, match=f"0: decomposition {method!r} does not take {told}; it takes"):
        norton.decompose(nn.Sequential(layer), rank, method)


class Conv3x3(nn.Conv2d):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, 3, padding=1, bias=False)


class Dense(nn.Linear):
    pass


class SamePadding(nn.Conv2d):
    """It pads by the size of the image, as TensorFlow does."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1) if x.shape[2] % 2 else (1, 1, 1, 1)), self.weight, self.bias)


@pytest.mark.parametrize("objective", ["weights", "outputs"])
def test_layers_derived_from_torch_are_decomposed_if_they_only_set_defaults(objective):
    torch.manual_seed(0)
    net = nn.Sequential(
        Conv3x3(3, 8),
        SamePadding(8, 6, 3),
        nn.utils.parametrizations.weight_norm(Conv3x3(6, 5)),
        nn.Flatten(),
        Dense(320, 4),
    )
    x = torch.randn(16, 3, 8, 8)
    with pytest.warns(NortonWarning) as told:
        small = norton.decompose(net, FULL, objective=objective, images=x)
    assert "left whole: 2: its weight is no parameter" in str(told[0].message)
    assert decomposed(small) == ["0"]
    assert decomposed(norton.decompose(net, FULL, "svd")) == ["4"]
    close(small(x), net(x))
    with pytest.raises(
        InputError, match="does not take a 3x3 convolution of 8 to 6 channels, with a forward pass of its own"
    ):
        norton.decompose(net, {"1": 1})


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore:called with hooks")
@pytest.mark.parametrize("objective", ["weights", "outputs"])
@pytest.mark.parametrize("method", ["cp", "tucker"])
def test_hooks_stay_but_those_that_compute_the_weight(method, objective):
    torch.manual_seed(0)
    net, x, seen = nn.Sequential(nn.Conv2d(3, 4, 3), weight_norm(nn.Conv2d(4, 4, 3))), torch.randn(8, 3, 8, 8), []
    for layer in net:
        layer.register_forward_pre_hook(lambda layer, args, kwargs: ((args[0] + 1,), kwargs), with_kwargs=True)
        layer.register_forward_hook(lambda layer, args, y: seen.append(layer) or y * 2)
        layer.register_full_backward_hook(lambda layer, *grads: seen.append("back"))
    small = norton.decompose(net, FULL, method, objective=objective, images=x)
    wanted = net(x)
    seen.clear()
    found = small(x)
    close(found, wanted)
    assert seen == [small[0], small[1]] and all(map(is_decomposed, seen))
    found.sum().backward()
    assert seen[2:] == ["back", "back"]
    assert len(small[1]._forward_pre_hooks) == 1


def test_what_was_set_on_a_layer_stays(tmp_path):
    """YOLO's modules know their place and what they read from."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    net[1].i, net[1].f = 1, [-1, 0]
    small = norton.decompose(net, 1)
    norton.save(small, tmp_path / "net.pt")
    for one in (small, norton.load(tmp_path / "net.pt", net=net)):
        assert (one[1].i, one[1].f) == (1, [-1, 0])
        assert not hasattr(one[0], "i")


# BatchNorm folded by others' code


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", [*SPATIAL, "svd"])
def test_batchnorm_is_folded_as_torch_folds_it(method, groups, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 1 if method == "svd" else 3, groups=groups, bias=bias)
    if not DECOMPOSITIONS[method].accepts(conv):
        pytest.skip("takes no groups")
    norm, x = nn.BatchNorm2d(6), torch.randn(4, 4, 8, 8)
    with torch.no_grad():
        for tensor in (norm.weight, norm.running_var):
            tensor.uniform_(0.5, 2)
        for tensor in (norm.bias, norm.running_mean):
            tensor.uniform_(-1, 1)
    small = norton.decompose(nn.Sequential(conv, norm), 1, method, example=x).eval()
    folded = fuse_conv_bn_eval(*small)
    assert is_decomposed(folded)
    close(folded(x), small(x))


def test_other_weights_are_refused():
    layer = norton.decompose(nn.Conv2d(3, 6, 3), 1)
    for weight in (
        torch.randn(6, 3, 3, 3),
        layer.weight + 1e-3,
        layer.weight.flip(0),
        torch.full((6, 3, 3, 3), torch.nan),
    ):
        with pytest.raises(ValueError, match="is a product of its parts"):
            layer.weight = nn.Parameter(weight.detach())


@pytest.mark.parametrize("which", ["weight", "bias"])
def test_a_layer_with_a_parametrisation_stays_whole(which):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3))
    nn.utils.parametrize.register_parametrization(net[2], which, nn.Identity())
    x = torch.randn(2, 3, 12, 12)
    with pytest.warns(UserWarning, match="2"):
        small = norton.decompose(net, 9, "tucker")
    assert (type(small[0]).__name__, type(small[2])) == ("TuckerConv", type(net[2]))
    assert small(x).shape == net(x).shape
