"""Detectors for inference: the network under them deployed."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import norton
from norton.common.errors import InputError, warn


@torch.no_grad()
def deploy_detector(net: nn.Module, images: Tensor | Sequence[Tensor], **options: Any) -> nn.Module:
    """A detector for inference whose backbone, with its feature pyramid, is deployed for the size these images get.

    images: as the detector takes them, (3, H, W) each in [0, 1]; others are taken too, for which the choice need not
    be the fastest.  options: of `norton.deploy`; a choice is one for the backbone.  The result is a copy that finds the
    same objects, with the backbone's `Deployment` as `.deployment`; proposals and heads stay as they are.

    A detector in training mode is deployed as for evaluation, with a warning.  Raises InputError as `norton.deploy`
    does.
    """
    if net.training:
        warn("the detector is in training mode; deployed as for evaluation")
    check_images(images)
    found = copy.deepcopy(net).eval()
    batch = found.transform(list(images))[0].tensors
    found.backbone = norton.deploy(found.backbone, batch, **options)
    found.backbone.out_channels = net.backbone.out_channels
    found.deployment = found.backbone.deployment
    return found


def check_images(images: Tensor | Sequence[Tensor]) -> None:
    """Raise InputError for what no detector takes."""
    batch = isinstance(images, Tensor) and images.ndim
    if not (batch or isinstance(images, Sequence)) or not len(images):
        raise InputError(f"images are a {type(images).__name__} without any; give at least one, (3, H, W) each")
    for image in images:
        if not isinstance(image, Tensor):
            raise InputError(f"images hold a {type(image).__name__}; give tensors, (3, H, W) each")
        if image.ndim != 3 or len(image) != 3 or not image.numel() or not image.is_floating_point():
            kind = str(image.dtype).removeprefix("torch.")
            raise InputError(
                f"images hold {kind} of {tuple(image.shape)}; give floating-point numbers in [0, 1], (3, H, W) each"
            )
