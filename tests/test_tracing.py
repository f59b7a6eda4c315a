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
from norton.plan import apply_plan_
from norton.pruning import CRITERIA, uniform_widths
from norton.pruning.surgery import apply_prune_
from norton.tracing import on_meta, trace_wiring
from norton.wiring import positions

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
CHOICES = ["at random", *(name for name in ("l2", "fpgm") if name in CRITERIA)]


@pytest.fixture(scope="module", params=list(REMOVED))
def torchvisions(request):
    """A network of torchvision with random weights and statistics, in float64 where that fits into memory."""
    name = request.param
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    # Drawing initial weights, to be replaced, would take most of the time; RegNet computes its widths with tensors.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        net = getattr(torchvision.models, name)(num_classes=10, **options)
    net = net if name in ("alexnet", "vgg16") else net.double()
    return randomised(net.to_empty(device="cpu"), name)


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
        for axis, width in uniform_widths(wiring, rate).items()
    }


def pruned(net, choice):
    """A pruned copy of a network, and what its axes keep."""
    wiring = norton.wiring_of(net)
    if choice != "at random":
        small = norton.prune(net, 0.3, criterion=choice)
        return small, {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    keep = random_keep(wiring)
    step = {"op": "prune", "keep": {wiring.name(axis): kept for axis, kept in keep.items()}}
    return apply_plan_(copy.deepcopy(net), [step]), keep


def alive(wiring, channels, keep, like):
    """1 for each kept position of `channels`, 0 for the others."""
    size = sum(wiring.width(axis) * repeat for axis, repeat in wiring.resolved(channels))
    return torch.zeros(size, dtype=like.dtype).index_fill_(0, torch.tensor(positions(wiring, channels, keep)), 1)


@torch.no_grad()
def masked_outputs(net, keep, x):
    """The outputs with removed channels zeroed wherever a layer reads them."""
    wiring, hooks = norton.wiring_of(net), []
    for name, channels in wiring.reads:
        layer = net.get_submodule(name)
        mask = alive(wiring, channels, keep, x)
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)

        def zero(_, inputs, mask=mask.view(shape)):
            return (inputs[0] * mask,)

        hooks.append(layer.register_forward_pre_hook(zero))
    try:
        return net(x)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def dead_outputs(net, keep, x):
    """The outputs with removed channels dead where they are written: zero filters, zero entries of norms.

    All activations behind a norm map zero to zero here, and a gate scales what is zero.
    """
    net = copy.deepcopy(net)
    wiring = norton.wiring_of(net)
    for names in wiring.writers.values():
        for name in names:
            layer, mask = net.get_submodule(name), alive(wiring, wiring.written(name), keep, x)
            layer.weight.mul_(mask.view(-1, *[1] * (layer.weight.dim() - 1)))
            if layer.bias is not None:
                layer.bias.mul_(mask)
    for name, channels in wiring.passes:
        for parameter in (net.get_submodule(name).weight, net.get_submodule(name).bias):
            parameter.mul_(alive(wiring, channels, keep, x))
    return net(x)


def check_exact(net, small, keep, x=None):
    x = images(net) if x is None else x
    with torch.no_grad():
        y = small(x)
    expected = masked_outputs(net, keep, x)
    tolerance = 1e-9 if y.dtype == torch.float64 else 1e-4
    assert y.shape == expected.shape
    assert expected.std() > 1e-3
    torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    dead = dead_outputs(net, keep, x)
    torch.testing.assert_close(y, dead, rtol=0, atol=tolerance * dead.abs().max().item())


@pytest.mark.parametrize("choice", CHOICES)
def test_torchvision(torchvisions, choice):
    """Exact surgery, enough of it, and gradients."""
    net = torchvisions
    small, keep = pruned(net, choice)
    check_exact(net, small, keep)
    sizes = [sum(p.numel() for p in n.parameters()) for n in (small, net)]
    assert 1 - sizes[0] / sizes[1] > REMOVED[net.name]
    small(images(net)).square().sum().backward()
    missing = [key for key, p in small.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(key.startswith(("aux", "AuxLogits")) for key in missing)
