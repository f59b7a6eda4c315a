"""Networks that declare nothing: what tracing finds is cut exactly, and what it cannot follow is left whole."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import ARCHITECTURES
from torch import nn

import norton
from norton.graph.meta import on_meta
from norton.graph.plan import apply_plan_
from norton.graph.tracing import trace_wiring
from norton.graph.wiring import positions
from norton.pruning.allocation import Allocation

# Least fraction of the parameters that goes when 30% of every axis does: roughly 1 - 0.7², less what is left whole.
REMOVED = {
    "alexnet": 0.48,
    "vgg16": 0.48,
    "resnet18": 0.48,
    "resnet50": 0.48,
    "resnext50_32x4d": 0.48,
    "wide_resnet50_2": 0.48,
    "densenet121": 0.48,
    "squeezenet1_1": 0.45,
    "googlenet": 0.48,
    "inception_v3": 0.48,
    "mobilenet_v2": 0.45,
    "mobilenet_v3_small": 0.45,
    "mobilenet_v3_large": 0.45,
    "shufflenet_v2_x1_0": 0.25,
    "mnasnet1_0": 0.45,
    "efficientnet_b0": 0.45,
    "regnet_y_400mf": 0.45,
    "convnext_tiny": 0.25,
}
SIDES = {"alexnet": 64, "inception_v3": 75}
LARGE = ("alexnet", "vgg16", "wide_resnet50_2", "convnext_tiny")  # in float32, for the time it takes
CHOICES = ["at random", "l2", "fpgm"]
# All distances between thousands of filters take half a minute.
EACH = [
    pytest.param(name, choice, marks=[pytest.mark.slow] * (name in LARGE and choice == "fpgm"))
    for name in REMOVED
    for choice in CHOICES
]


@pytest.fixture(scope="module")
def torchvisions(request):
    """A network of torchvision with random weights and statistics, and its wiring."""
    name = request.param
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # Drawing initial weights, to be replaced, would take most of the time; RegNet computes its widths with tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        net = getattr(torchvision.models, name)(num_classes=10, **options)
    net = randomised(net.to_empty(device="cpu") if name in LARGE else net.double().to_empty(device="cpu"), name)
    return net, norton.wiring_of(net)


def randomised(net, name=""):
    generator = torch.Generator().manual_seed(len(name))
    for key, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if key.endswith(("running_var", "layer_scale")) or (tensor.dim() == 1 and key.endswith("weight")):
            tensor.uniform_(0.7, 1.3, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(-0.2, 0.2, generator=generator)
        else:
            bound = (3 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
    net.name = name
    return net.eval()


def images(net, count=2):
    side = SIDES.get(net.name, 32)
    dtype = next(net.parameters()).dtype
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def random_keep(wiring, rate=0.3, seed=0):
    """Axis → units kept, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        axis: torch.randperm(wiring.width(axis), generator=generator)[:width].sort().values.tolist()
        for axis, width in Allocation(rate, min_filters=1).rated(None, wiring).items()
    }


def pruned(net, wiring, choice):
    """A pruned copy of a network, and what its axes keep."""
    if choice != "at random":
        small = norton.prune(net, 0.3, criterion=choice, min_filters=1)
        return small, {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    keep = random_keep(wiring)
    step = {"op": "prune", "keep": {wiring.name(axis): kept for axis, kept in keep.items()}}
    return apply_plan_(copy.deepcopy(net), [step]), keep


def alive(wiring, channels, keep, like):
    """1 for each kept position of `channels`, 0 for the others."""
    size = sum(wiring.width(axis) * repeat for axis, repeat in wiring.resolved(channels))
    return torch.zeros(size, dtype=like.dtype).index_fill_(0, torch.tensor(positions(wiring, channels, keep)), 1)


@torch.no_grad()
def masked_outputs(net, wiring, keep, x):
    """The outputs with removed channels zeroed wherever a layer reads them."""
    hooks = []
    for name, channels in wiring.reads:
        layer = net.get_submodule(name)
        mask = alive(wiring, channels, keep, x).view((-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1))

        def zero(_, inputs, mask=mask):
            return (inputs[0] * mask,)

        hooks.append(layer.register_forward_pre_hook(zero))
    try:
        return net(x)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def linear_norms(net):
    """A copy whose norms map zero to zero: without offsets.  All activations behind them do so here."""
    net = copy.deepcopy(net)
    for layer in net.modules():
        for key in ("bias", "running_mean"):
            if not isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, key, None) is not None:
                getattr(layer, key).zero_()
    return net


@torch.no_grad()
def dead_outputs(net, wiring, keep, x):
    """The outputs of a network with linear norms whose removed filters are zero.

    Of the wiring it asks only which filters go: where their channels lead, the network itself shows.
    """
    net = linear_norms(net)
    for axis, kept in keep.items():
        for name in wiring.writers[axis]:
            layer = net.get_submodule(name)
            each = len(layer.weight) // wiring.width(axis)
            dead = [i for i in range(len(layer.weight)) if i // each not in set(kept)]
            layer.weight[dead] = 0
            if layer.bias is not None:
                layer.bias[dead] = 0
    return net(x)


def check_exact(net, wiring, small, keep, x=None):
    x = images(net) if x is None else x
    with torch.no_grad():
        y = small(x)
    expected = masked_outputs(net, wiring, keep, x)
    tolerance = 1e-9 if y.dtype == torch.float64 else 1e-4
    assert y.shape == expected.shape
    assert expected.std() > 1e-3
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    dead = dead_outputs(net, wiring, keep, x)
    with torch.no_grad():
        y = linear_norms(small)(x)
    assert dead.std() > 1e-3
    torch.testing.assert_close(y, dead, rtol=0, atol=tolerance * dead.abs().max().item())


@pytest.mark.parametrize("torchvisions, choice", EACH, indirect=["torchvisions"])
def test_torchvision(torchvisions, choice):
    """Exact surgery, enough of it, and gradients."""
    net, wiring = torchvisions
    small, keep = pruned(net, wiring, choice)
    check_exact(net, wiring, small, keep)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (small, net)]
    assert 1 - sizes[0] / sizes[1] > REMOVED[net.name]
    if choice == CHOICES[0]:
        small(images(net)).square().sum().backward()
        missing = [key for key, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert all(key.startswith(("aux", "AuxLogits")) for key in missing)


@pytest.mark.parametrize("torchvisions", ["resnet18", "mobilenet_v3_small"], indirect=True)
@pytest.mark.parametrize("criterion", ["hrank", "taylor"])
def test_torchvision_by_data(torchvisions, criterion):
    net, wiring = torchvisions
    x = images(net, 4)
    small = norton.prune(net, 0.3, criterion=criterion, min_filters=1, images=x, labels=torch.arange(4))
    check_exact(net, wiring, small, {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()})


@pytest.mark.parametrize("name", REMOVED)
def test_plans_replay(name):
    """Plain data, applied to a network without values, in training mode too, with auxiliary heads."""
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        net = on_meta(getattr(torchvision.models, name)(num_classes=10, **options))
    wiring = norton.wiring_of(net)
    keep = {wiring.name(axis): kept for axis, kept in random_keep(wiring).items()}
    small = apply_plan_(net, json.loads(json.dumps([{"op": "prune", "keep": keep}])))
    again = norton.wiring_of(small)  # runs it, in training mode
    assert {again.name(axis): again.width(axis) for axis in again.writers if axis not in again.frozen} == {
        name: len(kept) for name, kept in keep.items()
    }


@pytest.mark.parametrize(
    "name, size", [("resnet18", None), ("mobilenet_v3_small", [3, 64, 64]), ("regnet_y_400mf", None)]
)
def test_built_by_path_and_loaded_without_flags(name, size, tmp_path):
    net = norton.build(f"torchvision.models.{name}", num_classes=10, input_size=size)
    assert (net.num_classes, net.input_size) == (10, tuple(size or (3, 224, 224)))
    small = norton.prune(
        norton.decompose(net, {"layer1.*": 2}, starts=1) if name == "resnet18" else net, 0.3, criterion="l2"
    )
    state = torch.get_rng_state()
    again = norton.load(norton.save(small.eval(), tmp_path / "a.pt"))
    assert torch.equal(state, torch.get_rng_state())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(again(x), small(x))
    assert (again.arch, again.num_classes, again.input_size) == (net.arch, 10, net.input_size)
    twice = norton.load(norton.save(norton.prune(again, 0.2, criterion="l2"), tmp_path / "b.pt"))
    assert norton.complexity(twice).macs < norton.complexity(again).macs < norton.complexity(net).macs
    if name == "resnet18":
        assert norton.build(net.arch, 0, 0.3, 10).fc.in_features == small.fc.in_features == 358


# Networks made by hand, each with what is special about it


class Net(nn.Module):
    """Layers by name, and a forward pass given as a function of them."""

    input_size = (3, 16, 16)

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer) if isinstance(layer, nn.Module) else setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(a, b, kernel=3, **options):
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **options)


def shuffled(m, x):
    y = m.a(x).relu()
    n, c, h, w = y.shape
    y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return m.fc(m.c(m.b(y).relu()).mean([2, 3]))


def gated(m, x):
    y = F.relu(m.n(m.a(x)))
    n, c, _, _ = y.size()
    s = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1).view(n, c))))).view(n, c, 1, 1)
    return m.fc((y * s.expand_as(y)).mean((2, 3)))


def squeezed(m, x):
    y = m.a(x).relu()
    n, c = y.size()[:2]
    s = m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)[:, :, 0, 0].view(n, c)))).sigmoid()
    return m.fc((y * s[..., None, None]).mean((2, 3)))


def normed_twice(m, x):
    y = m.c(m.n(m.a(x)).relu())
    return m.fc((y + m.d(m.n(torch.cat([m.p(x), m.q(x)], 1)).relu())).mean([2, 3]))


def normed_out_of_sight(m, x):
    y = m.n(m.a(x).flip(1)).relu()
    return m.fc((m.c(y) + m.d(m.n(m.b(x)).relu())).mean([2, 3]))


def scaled_twice(m, x):
    return m.fc((m.c(m.a(x) * m.scale) + m.d(m.b(x) * m.scale.view(1, -1, 1, 1))).relu().mean([2, 3]))


def scaled_and_averaged(m, x):
    return m.fc((m.b(m.a(x) * m.scale) * m.scale.mean()).mean([2, 3]))


def scaled_along_two(m, x):
    y = m.b(m.a(x) * m.scale)  # (8, 8), by channels and rows
    return m.fc((m.c(x).permute(0, 2, 3, 1) * m.scale).permute(0, 3, 1, 2).add(y).mean([2, 3]))


def evaluated_otherwise(m, x):
    y = m.a(x).relu()
    return m.fc(m.b(y if m.training else m.c(y)).mean([2, 3]))


def frozen_norm(width):
    return torchvision.ops.FrozenBatchNorm2d(width)


def scale(*shape):
    return nn.Parameter(torch.ones(shape))


def buffered(net, **buffers):
    for name, tensor in buffers.items():
        net.register_buffer(name, tensor)
    return net


def aliased(net):
    net.other = net.scale
    return net


def layers(**more):
    return {"a": conv(3, 8), "b": conv(8, 8), "fc": nn.Linear(8, 5)} | more


HAND_MADE = {  # name → network, widths of the axes that can be pruned, first writers of those that cannot
    "plain": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x).relu()).relu().mean([2, 3])), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "residual": (
        lambda: Net(lambda m, x: m.fc(((y := m.a(x).relu()) + m.b(y)).relu().amax((2, 3))), **layers()),
        {"a": 8},
        {"fc"},
    ),
    "concatenating": (
        lambda: Net(
            lambda m, x: m.fc(m.n(torch.cat([y := m.a(x).relu(), m.b(y), y], 1)).relu().mean([2, 3])),
            **layers(n=nn.BatchNorm2d(24), fc=nn.Linear(24, 5)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "grouped": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu())).relu().mean([2, 3])),
            a=conv(3, 12),
            b=conv(12, 24, groups=6),
            n=nn.GroupNorm(3, 24),
            fc=nn.Linear(24, 5),
        ),
        {"a": 3},
        {"fc"},
    ),
    "depthwise": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x)).relu().mean([2, 3])), **layers(b=conv(8, 8, 5, groups=8))),
        {"a": 8},
        {"fc"},
    ),
    "a gate": (
        lambda: Net(gated, **layers(n=nn.BatchNorm2d(8), down=nn.Linear(8, 4), up=nn.Linear(4, 8))),
        {"a": 8, "down": 4},
        {"fc"},
    ),
    "flatten": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu()).flatten(1))),
            **layers(n=nn.BatchNorm1d(8 * 256), fc=nn.Linear(8 * 256, 5)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a size in the code": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x).relu()).view(-1, 2048)), **layers(fc=nn.Linear(2048, 5))),
        {"a": 8},
        {"b", "fc"},
    ),
    "view that follows": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x)).relu().view(x.size(0), -1)), **layers(fc=nn.Linear(2048, 5))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a layer called twice": (
        lambda: Net(lambda m, x: m.fc(m.b(m.b(m.a(x).relu()).relu()).mean([2, 3])), **layers()),
        {"a": 8},
        {"fc"},
    ),
    "shuffle": (lambda: Net(shuffled, **layers(c=conv(8, 8, 1))), {"b": 8, "c": 8}, {"a", "fc"}),
    "half of the channels": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x)[:, :8]).relu().mean([2, 3])), **layers(a=conv(3, 16))),
        {"b": 8},
        {"a", "fc"},
    ),
    "a scale per channel": (
        lambda: Net(
            lambda m, x: m.fc((m.b(m.a(x).relu()) * m.scale).mean([2, 3])),
            **layers(scale=nn.Parameter(torch.ones(8, 1, 1))),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "channels last": (
        lambda: Net(
            lambda m, x: m.fc(m.v(F.gelu(m.u(m.a(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).mean([2, 3])),
            **layers(u=nn.Linear(8, 16), v=nn.Linear(16, 8)),
        ),
        {"a": 8, "u": 16, "v": 8},
        {"fc"},
    ),
    "normalised over channels": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu()).mean([2, 3]))), **layers(n=nn.LayerNorm(8))
        ),
        {"a": 8},
        {"b", "fc"},
    ),
    "mean over channels": (
        lambda: Net(lambda m, x: m.fc(((y := m.b(m.a(x).relu())) * y.mean(1, keepdim=True)).mean([2, 3])), **layers()),
        {"a": 8},
        {"b", "fc"},
    ),
    "number of channels": (
        lambda: Net(lambda m, x: m.fc((m.b(y := m.a(x).relu()) / y.size(1)).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "number of positions": (
        lambda: Net(lambda m, x: m.fc((y := m.b(m.a(x).relu())).sum([2, 3]) / (y.shape[2] * y.size(-1))), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "an assertion": (lambda: Net(asserting, **layers()), {"b": 8}, {"a", "fc"}),
    "shared weights": (
        lambda: shared(Net(lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).mean([2, 3])), **layers(c=conv(8, 8)))),
        {},
        {"a", "b", "c", "fc"},
    ),
    "a layer without slicer": (
        lambda: Net(lambda m, x: m.fc(m.t(m.b(m.a(x).relu())).mean([2, 3])), **layers(t=nn.ConvTranspose2d(8, 8, 2))),
        {"a": 8},
        {"b", "fc"},
    ),
    "a parametrised layer": (
        lambda: Net(
            lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).mean([2, 3])),
            **layers(b=nn.utils.parametrizations.weight_norm(conv(8, 8)), c=conv(8, 8)),
        ),
        {"c": 8},
        {"a", "b", "fc"},
    ),
    "a norm of a stream and of a concatenation": (
        lambda: Net(
            normed_twice, **layers(n=nn.BatchNorm2d(8), p=conv(3, 4), q=conv(3, 4), c=conv(8, 8), d=conv(8, 8))
        ),
        {"c": 8},
        {"a", "p", "q", "fc"},
    ),
    "a norm that is also elsewhere": (
        lambda: Net(normed_out_of_sight, **layers(b=conv(3, 8), n=nn.BatchNorm2d(8), c=conv(8, 8), d=conv(8, 8))),
        {"c": 8},
        {"a", "b", "fc"},
    ),
    "clamped by a parameter": (
        lambda: Net(
            lambda m, x: m.fc(m.b(torch.clamp(m.a(x), min=m.low)).relu().mean([2, 3])), **layers(low=scale(1, 8, 1, 1))
        ),
        {"b": 8},
        {"a", "fc"},
    ),
    "a scale used twice": (
        lambda: Net(scaled_twice, **layers(b=conv(3, 8), c=conv(8, 8), d=conv(8, 8), scale=scale(8, 1, 1))),
        {"a": 8, "c": 8},
        {"fc"},
    ),
    "a scale per channel and position": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) * m.scale).mean([2, 3])), **layers(scale=scale(8, 16, 16))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a scale that is averaged": (
        lambda: Net(scaled_and_averaged, **layers(scale=scale(8, 16, 16))),
        {"b": 8},
        {"a", "fc"},
    ),
    "a scale along two dimensions": (
        lambda: Net(
            scaled_along_two,
            **layers(c=conv(3, 8), scale=scale(8, 1, 8), input_size=(3, 8, 8)),
        ),
        {},
        {"a", "b", "fc"},
    ),
    "a scale of two names": (
        lambda: aliased(
            Net(
                lambda m, x: m.fc((m.b(m.a(x) * m.scale) * m.other).mean([2, 3])),
                **layers(scale=nn.Parameter(torch.ones(8, 1, 1))),
            )
        ),
        {},
        {"a", "b", "fc"},
    ),
    "a layer only in evaluation": (
        lambda: Net(evaluated_otherwise, **layers(c=conv(8, 8, 1))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a flip only in evaluation": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) if m.training else m.a(x).flip(1)).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "frozen norms": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.k(m.a(x)).relu())).relu().mean([2, 3])),
            **layers(k=frozen_norm(8), n=frozen_norm(8)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a buffer that is scaled": (
        lambda: buffered(
            Net(lambda m, x: m.fc(m.b(m.a(x) * (m.scale * 2)).mean([2, 3])), **layers()), scale=torch.ones(1, 8, 1, 1)
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "statistics of a norm": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.n(m.a(x)) * m.n.running_var[:, None, None]).mean([2, 3])),
            **layers(n=nn.BatchNorm2d(8)),
        ),
        {"b": 8},
        {"a", "fc"},
    ),
    "normalised over all": (
        lambda: Net(lambda m, x: m.fc(m.b(F.layer_norm(y := m.a(x), y.shape[1:])).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "normalised over positions": (
        lambda: Net(lambda m, x: m.fc(m.b(F.layer_norm(y := m.a(x), y.shape[2:])).amax([2, 3])), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a constant per channel": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) * torch.ones(8, 1, 1, dtype=torch.float64)).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "a tensor that is no buffer": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.a((x - m.mean) / m.std)).mean([2, 3])),
            **layers(mean=torch.zeros(3, 1, 1), std=torch.ones(1)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a gate per position": (
        lambda: Net(
            lambda m, x: m.fc(m.b((y := m.a(x).relu()) * m.g(y).sigmoid()).mean([2, 3])), **layers(g=conv(8, 1))
        ),
        {"a": 8, "b": 8},
        {"fc", "g"},
    ),
    "a gate by indices": (
        lambda: Net(squeezed, **layers(down=nn.Linear(8, 4), up=nn.Linear(4, 8))),
        {"a": 8, "down": 4},
        {"fc"},
    ),
    "padding and upsampling": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.u(m.z(m.a(x).relu()))).mean([2, 3])),
            **layers(z=nn.ZeroPad2d(1), u=nn.Upsample(scale_factor=2)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "two outputs": (
        lambda: Net(lambda m, x: (m.fc((y := m.b(m.a(x).relu())).mean([2, 3])), y)[0], **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
}  # fmt: skip


def asserting(m, x):
    y = m.a(x)
    torch._assert(y.shape[1] == 8, "eight channels")
    torch._assert(y.shape[2] > 3, "large images")
    return m.fc(m.b(y.relu()).mean([2, 3]))


def in_place(m, x):
    y = m.a(x)
    y[:, 2:4] = 0
    return m.fc(m.b(y).mean([2, 3]))


def shared(net):
    net.c.weight = net.b.weight
    return net


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made(name):
    make, widths, whole = HAND_MADE[name]
    torch.manual_seed(0)
    net = randomised(make().double(), name)
    wiring = norton.wiring_of(net)
    frozen = wiring.frozen
    assert {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in frozen} == widths
    assert set(wiring.left_whole) == whole
    x = torch.randn(3, *net.input_size, dtype=torch.float64)
    if not widths:
        with pytest.raises(norton.InputError, match=r"none of its . channel axes can be pruned"):
            norton.prune(net, 0.3, criterion="l2")
        return
    for choice in CHOICES:
        small, keep = pruned(net, wiring, choice)
        check_exact(net, wiring, small, keep, x)
        small.train()(x).sum().backward()
        assert all(len(keep[wiring.axis_of(layer)]) == int(width * 0.7) for layer, width in widths.items())


def test_the_oracles_see_a_wrong_offset():
    """Cutting what a flattened channel's neighbour reads must show."""
    make, _, _ = HAND_MADE["flatten"]
    net = randomised(make().double())
    wiring = norton.wiring_of(net)
    small, keep = pruned(net, wiring, "at random")
    wrong = {axis: [(unit + 1) % wiring.width(axis) for unit in kept] for axis, kept in keep.items()}
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(AssertionError):
        check_exact(net, wiring, small, wrong, x)
    small = linear_norms(small)
    assert torch.allclose(small(x), dead_outputs(net, wiring, keep, x))
    assert not torch.allclose(small(x), dead_outputs(net, wiring, wrong, x))


# Declared networks


def as_sets(wiring):
    """A wiring without its numbering: axes as the sets of their writers."""

    def named(channels):
        return tuple((frozenset(wiring.writers.get(axis, ())), repeat) for axis, repeat in wiring.resolved(channels))

    axes = {frozenset(names): wiring.width(axis) for axis, names in wiring.writers.items()}
    passes, reads = ({(name, named(x)) for name, x in part} for part in (wiring.passes, wiring.reads))
    shifts = {tuple(frozenset(wiring.writers[axis]) for axis in edge) for edge in wiring.shifts}
    return axes, passes, reads, shifts, set(wiring.left_whole)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rank", [0, 2])
def test_tracing_agrees_with_the_declaration(arch, rank):
    rates = {"vgg_16_bn": "[0.3]*13", "resnet_50": "[0.2]*20"}.get(arch, "[0.2]+[0.4]*2+[0.3]*60")
    for compress_rate in (None, rates):
        with torch.device("meta"):
            net = norton.build(arch, rank, compress_rate)
        assert as_sets(trace_wiring(net)) == as_sets(net.wiring())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_number_prunes_declared_networks(arch):
    net = norton.build(arch)
    small = norton.prune(net, 0.3, criterion="l2")
    assert norton.complexity(small).macs < 0.7 * norton.complexity(net).macs
    assert small(torch.randn(2, *net.input_size)).shape == (2, net.num_classes)


# What people get wrong


def plain(m, x):
    return m.fc(m.b(m.a(x).relu()).mean([2, 3]))


def decides(m, x):
    y = m.a(x)
    return m.fc((m.b(y) if y.sum() > 0 else y).mean([2, 3]))


@pytest.mark.parametrize("run, options, message", [
    (decides, {}, r"cannot be traced: .*test_tracing\.py:\d+ .*y\.sum\(\) > 0.*wiring\(\)"),
    (in_place, {}, r"cannot be traced: .*y\[:, 2:4\] = 0.*assignments into tensors"),
    (lambda m, x: m.fc(m.b(m.a(x)).flatten(1)), {}, r"size 3×16×16; it fails at fc: .*example="),
    (lambda m, x: m.fc(m.b(m.a(x)).mean([2, 3])), {"example": (1, 16, 16)}, r"size 1×16×16; it fails at a: .*example="),
])  # fmt: skip
def test_networks_that_cannot_be_traced(run, options, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(Net(run, **layers()), 0.3, criterion="l2", **options)


class Sizeless(nn.Sequential):
    pass


def test_an_example_says_the_size(tmp_path):
    net = Sizeless(conv(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 4))
    with pytest.raises(norton.InputError, match=r"takes no input of size 3×224×224, .*example="):
        norton.prune(net, 0.3, criterion="l2")
    x = torch.randn(1, 3, 12, 12)
    small = norton.prune(net, 0.3, criterion="l2", example=x, min_filters=1).eval()
    assert small[3].in_features == 5 * 144
    assert torch.equal(norton.load(norton.save(small, tmp_path / "a.pt"), net=net)(x), small(x))


@pytest.mark.parametrize("stated", [32, (32, 32), "32", None])
def test_a_stated_size_that_is_none(stated, tmp_path):
    net = HAND_MADE["plain"][0]()
    net.input_size = stated
    small = norton.prune(net, 0.3, criterion="l2", min_filters=1)
    assert (small.a.out_channels, small.b.out_channels) == (5, 5)
    with pytest.raises(norton.InputError, match=r"input_size=|cannot take an input of size"):
        norton.complexity(net)
    assert torch.equal(norton.load(norton.save(small, tmp_path / "a.pt"), net=net).b.weight, small.b.weight)


@pytest.mark.parametrize("example", [32, (3, 32.0, 32), (), (3, 0, 32)])
def test_a_bad_example(example):
    with pytest.raises(norton.InputError, match=r"example is .*give an input, or its size"):
        norton.prune(HAND_MADE["plain"][0](), 0.3, criterion="l2", example=example)


def test_a_weight_that_cannot_be_copied():
    with pytest.warns(FutureWarning):
        net = nn.Sequential(conv(3, 8), nn.ReLU(), nn.utils.weight_norm(conv(8, 8)), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(norton.InputError, match=r"2\.weight is computed .*torch\.nn\.utils\.parametrizations"):
        norton.prune(net, 0.3, criterion="l2")


MINE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, num_classes=2):
        super().__init__()
        self.a, self.fc, self.mean = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes), torch.zeros(3, 1, 1)

class Deciding(Mine):
    def forward(self, x):
        if x.mean() > 0:
            x = x + 1
        return self.fc(self.a(x).mean([2, 3]))

class Shifting(Mine):
    def forward(self, x):
        return self.fc(self.a(x - self.mean + torch.ones(3, 1, 1)).mean([2, 3]))
"""


def test_the_mode_that_cannot_be_traced():
    net = Net(lambda m, x: plain(m, x) if m.training else decides(m, x), **layers())
    with pytest.raises(norton.InputError, match=r"cannot be traced in evaluation mode: .*y\.sum\(\) > 0"):
        norton.prune(net, 0.3, criterion="l2")


def test_networks_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        norton.InputError, match=r"of_mine\.py:12 \(if x\.mean\(\) > 0:\).*free of decisions about values"
    ):
        norton.build("of_mine.Deciding")
    net = norton.build("of_mine.Shifting", num_classes=4)
    assert (net.num_classes, net.input_size) == (4, (3, 224, 224))
    small = norton.prune(net, 0.3, criterion="l2", min_filters=1)
    assert small(torch.randn(1, 3, 8, 8)).shape == (1, 4)
    assert small.a.out_channels == small.fc.in_features == 5


@pytest.mark.parametrize("rate, message", [
    ("[0.3]*4", "has no published list of rates"),
    (1.5, "at least 0 and below 1"),
    (float("nan"), "at least 0 and below 1"),
])  # fmt: skip
def test_bad_rates(rate, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(HAND_MADE["plain"][0](), rate, criterion="l2")


@pytest.mark.parametrize("arch, options, message", [
    ("torchvision.models.nix", {}, "has nothing callable of the name 'nix'"),
    ("torchvision.models.None", {}, "give name="),
    ("nix.models.net", {}, "cannot import nix.models"),
    ("os.path;import", {}, "is no path of a constructor"),
    ("os.getcwd", {}, "makes a str, which is no network"),
    ("os.getcwd", {"num_classes": 3}, "takes no num_classes"),
    ("torchvision.models.resnet18", {"num_classes": 0}, "whole number of at least 1"),
    ("torchvision.models.resnet18", {"input_size": [64, 64]}, r"give \(channels, height, width\)"),
    ("torchvision.models.resnet18", {"input_size": [1, 64, 64]}, "takes no input of size 1×64×64"),
    ("torchvision.models.resnet18", {"compress_rate": "[0.3]*4"}, "has no published list of rates"),
    ("torch.nn.Identity", {"num_classes": 3}, "asked for 3 classes"),
    ("resnet_56", {"input_size": [3, 64, 64]}, "leave it out"),
])  # fmt: skip
def test_bad_paths(arch, options, message):
    with pytest.raises(norton.InputError, match=message):
        norton.build(arch, **options)


def test_a_file_that_names_what_is_not_there(tmp_path):
    content = torch.load(
        norton.save(norton.build("torchvision.models.squeezenet1_1", num_classes=3), tmp_path / "a.pt")
    )
    for arch in ("nix.models.net", "os.getcwd", "torchvision.models.nix"):
        torch.save({**content, "arch": arch}, tmp_path / "b.pt")
        with pytest.raises(norton.InputError, match=arch.replace(".", r"\.")):
            norton.load(tmp_path / "b.pt")


def test_a_file_alone_runs_no_code(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import pathlib\nfrom torch import nn\n"
        f"pathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def net(): return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(2704, 2))\n"
    )
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 2))
    net.arch, net.num_classes, net.input_size = "mine.net", None, (3, 28, 28)
    file = norton.save(net, tmp_path / "a.pt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(norton.InputError, match="would import and call"):
        norton.load(file)
    assert not (tmp_path / "ran").exists()
    assert torch.equal(norton.load(file, arch="mine.net")[0].weight, net[0].weight)
    assert (tmp_path / "ran").exists()
