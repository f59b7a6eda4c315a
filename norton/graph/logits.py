"""Logits in what a network gives, for labels of images or of pixels."""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

OUT = "out"  # where torchvision's segmentation networks have them


def logits_in(output: Any) -> Any:
    """What a network gives, or `out` of a dict of that."""
    return output.get(OUT, output) if isinstance(output, Mapping) else output


def resized_to(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (N, classes, h, w) in the height and width of masks (N, H, W), bilinearly; others as they are."""
    if logits.dim() != 4 or labels.dim() != 3 or logits.shape[2:] == labels.shape[1:]:
        return logits
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
