"""All of torchvision's networks for classification, segmentation and video: cut exactly, and enough.

A few in `make test`, all by `pytest -m slow`; `test_torchvision` looks at some of them more closely.
"""

import copy
import random

import pytest
import torch
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import norton
from norton.graph.slicing import cut_
from norton.pruning.allocation import Allocation

ENOUGH = 0.8  # most of the MACs that may be left when 30% of all filters go
GIANT = 120e6  # parameters, from which on shapes alone are looked at
FEW = ("squeezenet1_1", "lraspp_mobilenet_v3_large")
NAMES = [name for kind in (models, models.segmentation, models.video) for name in models.list_models(module=kind)]
SIZES = {
    **{"inception_v3": (3, 299, 299), "vit_h_14": (3, 112, 112), "maxvit_t": (3, 224, 224)},
    **{"s3d": (3, 14, 224, 224), "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224)},
}
OPTIONS = {
    **{name: {"init_weights": False} for name in ("googlenet", "inception_v3")},
    **{name: {"image_size": 112 if name == "vit_h_14" else 64} for name in NAMES if name.startswith("vit_")},
    **{name: {"weights_backbone": None} for name in models.list_models(module=models.segmentation)},
}


def size_of(name):
    """(channels, height, width) of a network's images, or with frames behind the channels."""
    if name in models.list_models(module=models.video):
        return SIZES.get(name, (3, 8, 32, 32))
    return SIZES.get(name, (3, 64, 64))


def network(name):
    """With random weights; of those too large to compute with, without any."""
    options = {"weights": None, "num_classes": 10, **OPTIONS.get(name, {})}
    if not name.startswith("regnet"):  # whose constructor computes with tensors
        with torch.device("meta"):
            net = models.get_model(name, **options)
        if is_giant(net):
            return net.eval()
    net = models.get_model(name, **options)
    if is_giant(net):
        return net.to("meta").eval()
    net = net.double()
    generator = torch.Generator().manual_seed(0)
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() < 2:
            low, high = (0.7, 1.3) if key.endswith(("weight", "running_var", "scale")) else (-0.1, 0.1)
            tensor.uniform_(low, high, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
    return normed(net, torch.randn(4, *size_of(name), dtype=torch.float64, generator=generator))


@torch.no_grad()
def normed(net, images):
    """With statistics of images in its BatchNorms: else a deep network blows rounding up to errors of a thousandth."""
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        torch.manual_seed(0)  # of dropout and of layers that are left out at random
        net.train()(images)
    for norm in norms:
        norm.running_var.clamp_(min=1e-3)
    return net.eval()


def is_giant(net):
    return sum(p.numel() for p in net.parameters()) > GIANT


def random_keep(wiring, rate=0.3):
    """Axis → units that stay."""
    draw = random.Random(0)
    widths = Allocation(rate, options=norton.PruneOptions(min_filters=1)).rated(None, wiring)
    return {axis: sorted(draw.sample(range(wiring.width(axis)), width)) for axis, width in widths.items()}


def macs(net, size):
    """As torch counts what is executed, without computing it."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(net).to("meta")(torch.empty(1, *size, device="meta", dtype=next(net.parameters()).dtype))
    return counter.get_total_flops()


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in FEW else [pytest.mark.slow]) for n in NAMES])
def test_all_of_torchvision(name):
    net, size = network(name), size_of(name)
    wiring = norton.wiring_of(net, size)
    keep = random_keep(wiring)
    small = copy.deepcopy(net)
    cut_(small, wiring, keep)
    assert macs(small, size) < ENOUGH * macs(net, size), wiring.left_whole
    if not next(net.parameters()).is_meta:
        x = torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), (x,))
        assert largest_error(outputs(net, (x,)), expected) > 1e-3
        assert largest_error(outputs(small, (x,)), expected) < 1e-8
