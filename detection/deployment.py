"""Detectors for inference: the network under them deployed."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import norton


@torch.inference_mode()
def deploy_detector(net: nn.Module, images: Tensor | Sequence[Tensor], **options: Any) -> nn.Module:
    """A detector for inference whose backbone, with its feature pyramid, is deployed for the size these images get.

    images: as the detector takes them, (3, H, W) each in [0, 1]; others are taken too, for which the choice need not
    be the fastest.  options: of `norton.deploy`; a choice is one for the backbone.  The result is a copy that finds the
    same objects, with the backbone's `Deployment` as `.deployment`; proposals and heads stay as they are.

    Raises InputError as `norton.deploy` does.
    """
    found = copy.deepcopy(net).eval()
    batch = found.transform(list(images))[0].tensors
    found.backbone = norton.deploy(found.backbone, batch, **options)
    found.backbone.out_channels = net.backbone.out_channels
    found.deployment = found.backbone.deployment
    return found
