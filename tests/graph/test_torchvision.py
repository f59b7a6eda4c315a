"""Networks of torchvision, which declare nothing: cut exactly and enough."""

import json

import pytest
import torch
import torchvision
from helpers.cutting import CHOICES, check_exact, images, pruned, random_keep, randomised

import norton
from norton.graph.meta import on_meta
from norton.graph.plan import apply_plan_

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
LARGE = ("alexnet", "vgg16", "wide_resnet50_2", "convnext_tiny")  # in float32, for the time it takes
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
    options = norton.PruneOptions(min_filters=1, compensate=None)
    small = norton.prune(net, 0.3, criterion=criterion, options=options, images=x, labels=torch.arange(4))
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
    gone = wiring.gone_filters({wiring.axis_of(name): kept for name, kept in keep.items()})
    again = norton.wiring_of(small)  # runs it, in training mode
    # By layers: what goes together in groups, as wholes or the same filters of each, depends on what is smaller now.
    assert {name: len(again.written(name)) for name in gone} == {
        name: len(wiring.written(name)) - len(lost) for name, lost in gone.items()
    }
    assert all(again.axis_of(name) not in again.frozen for name in gone)
