"""Grad-CAM: where a network looks when it names a class, and how alike two networks look."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.errors import InputError
from norton.common.extras import optional
from norton.graph.copies import copied
from norton.graph.layers import set_form_
from norton.graph.logits import logits_in, resized_to

# The output of the last convolutional stage, by the names of the published networks; the first that exists.
LAST_STAGES = ("layer4", "layer3", "features", "relu")


def explained_layer(net: nn.Module, layer: str | None = None) -> str:
    """`layer`, or by default the one whose output is that of the last convolutional stage.

    Raises InputError for a layer that the network lacks, or whose output is no map of channels.
    """
    if layer is None:
        layer = next((name for name in LAST_STAGES if hasattr(net, name)), None) or _end_of_backbone(net)
        if layer is None:
            raise InputError(f"{type(net).__name__} has none of {', '.join(LAST_STAGES)}; give layer=NAME")
    modules = dict(net.named_modules())
    if not layer or layer not in modules:
        raise InputError(f"{type(net).__name__} has no layer {layer!r}; it has e.g. {', '.join(list(modules)[1:5])}")
    size = _output_size(net, modules[layer])
    if size is None or len(size) != 4 or size[-2:] == (1, 1):
        raise InputError(f"layer {layer} gives {size and tuple(size[1:])}, no map of channels × rows × columns")
    return layer


def _end_of_backbone(net: nn.Module) -> str | None:
    """Where torchvision's segmentation networks have their last stage: the backbone itself gives a dict."""
    backbone = getattr(net, "backbone", None)
    stages = [name for name, _ in backbone.named_children()] if isinstance(backbone, nn.Module) else []
    return f"backbone.{stages[-1]}" if stages else None


def explainable(net: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in the form that is fast with gradients."""
    return set_form_(copied(net), "fast").eval()


def grad_cam(net: nn.Module, layer: str, images: Tensor, classes: Tensor, pixels: Tensor | None = None) -> Tensor:
    """How much each place of an image speaks for a class, as one layer sees it.

    net: made by `explainable`.  images: (N, 3, H, W), normalised.  classes: (N,), the classes to explain.  Returns
    (N, H, W), at least 0: the layer's channels weighted by the spatial mean of the logit's gradient, summed, rectified
    and brought to the image's size (bilinear).  Source: Selvaraju et al. 2017, equations 1 and 2.

    pixels: (N, H, W), true for those to explain, of a network that tells the class of each pixel: in the place of the
    logit is its sum over them.  Source: Seg-Grad-CAM, Vinogradova et al. 2020, equation 2.
    """
    with optional():
        from captum.attr import LayerAttribution, LayerGradCam  # takes a second to import

    # Captum keeps a clone of the layer's output, so a ReLU in place after it does no harm.
    score = net if pixels is None else partial(_summed, net, pixels)
    maps = LayerGradCam(score, net.get_submodule(layer)).attribute(images, target=classes, relu_attributions=True)
    return LayerAttribution.interpolate(maps.detach(), tuple(images.shape[-2:]), "bilinear")[:, 0]


def _summed(net: nn.Module, pixels: Tensor, images: Tensor) -> Tensor:
    """(N, classes): the logits of each class summed over the pixels."""
    return (resized_to(logits_in(net(images)), pixels) * pixels[:, None]).sum((2, 3))


def map_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation over the pixels of two maps.

    a, b: (N, H, W).  Returns (N,), float64; NaN where one of the two maps is constant, which has no correlation.
    """
    (a, constant_a), (b, constant_b) = _standardised(a), _standardised(b)
    return torch.where(constant_a | constant_b, torch.nan, (a * b).sum(1))


def _standardised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """(N, H·W) of mean 0 and norm 1, and (N,) whether a map is constant (but for rounding)."""
    maps = maps.flatten(1).double()
    largest = maps.abs().amax(1)
    constant = maps.amax(1) - maps.amin(1) <= 1e-6 * largest
    maps = maps - maps.mean(1, keepdim=True)
    return maps / maps.norm(dim=1, keepdim=True).clamp_min(1e-300), constant


@torch.no_grad()
def _output_size(net: nn.Module, layer: nn.Module) -> torch.Size | None:
    seen = []

    def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
        seen.append(output.shape if isinstance(output, Tensor) else None)

    handle = layer.register_forward_hook(hook)
    try:
        net(torch.zeros(1, *net.input_size))
    finally:
        handle.remove()
    return seen[0] if seen else None
