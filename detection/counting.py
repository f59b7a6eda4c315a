"""MACs of a detector, part by part, at a stated number of proposals and detections."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.checks import check_whole_number
from norton.graph.inputs import Inputs
from norton.graph.meta import on_meta
from norton.measure.counting import CONVENTIONS
from norton.measure.executing import without_values

PUBLISHED_SIZE, PUBLISHED_PROPOSALS = 800, 1000


@dataclass(frozen=True)
class DetectorComplexity:
    """Cost of a detector for one image.

    macs, params: of the whole.  by_part: backbone, fpn, rpn, box head, and mask or keypoint head → MACs.
    size: (height, width) of the image that enters the backbone.  proposals, detections: boxes that the box head, and
    the mask or keypoint head, look at.
    """

    macs: int
    params: int
    by_part: dict[str, int]
    size: tuple[int, int]
    proposals: int
    detections: int
    convention: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def detector_complexity(
    net: nn.Module,
    size: int | tuple[int, int] = PUBLISHED_SIZE,
    *,
    proposals: int = PUBLISHED_PROPOSALS,
    detections: int = 0,
    convention: str = "norton",
) -> DetectorComplexity:
    """Count a detector of `build_detector`.

    What the heads cost depends on how many boxes survive, hence on the image; so it is counted at stated numbers.  The
    published figures are at 800×800, 1000 proposals and no detection.  Resizing, anchors, and the choice of boxes are
    not counted.  convention: as in `norton.complexity`.

    Raises InputError for numbers below 0 and sizes that are too small.
    """
    size = (size, size) if isinstance(size, int) else tuple(size)
    for name, number, least in (("size", min(size), 32), ("proposals", proposals, 0), ("detections", detections, 0)):
        check_whole_number(name, number, least)
    counted = on_meta(net).eval()
    image = torch.empty(1, 3, *size, device="meta")
    body = counted.backbone.body
    stages = body(image)
    pyramid = counted.backbone.fpn(stages)
    parts = {
        "backbone": _macs(body, image, convention),
        "fpn": _macs(counted.backbone.fpn, stages, convention),
        "rpn": _macs(counted.rpn.head, list(pyramid.values()), convention),
        "box head": _box_head(counted.roi_heads, counted.backbone.out_channels, proposals, convention),
    }
    for kind in ("mask", "keypoint"):
        if getattr(counted.roi_heads, f"{kind}_head", None) is not None:
            parts[f"{kind} head"] = _map_head(counted, kind, detections, convention)
    params = sum(p.numel() for p in net.parameters())
    return DetectorComplexity(sum(parts.values()), params, parts, size, proposals, detections, convention)


def _box_head(heads: nn.Module, channels: int, proposals: int, convention: str) -> int:
    if not proposals:
        return 0
    side = heads.box_roi_pool.output_size
    pooled = torch.empty(proposals, channels, *side, device="meta")
    return _macs(heads.box_head, pooled, convention) + _macs(heads.box_predictor, heads.box_head(pooled), convention)


def _map_head(net: nn.Module, kind: str, detections: int, convention: str) -> int:
    """A mask or keypoint head; every detection costs the same."""
    heads = net.roi_heads
    head, predictor = getattr(heads, f"{kind}_head"), getattr(heads, f"{kind}_predictor")
    pooled = torch.empty(1, net.backbone.out_channels, *getattr(heads, f"{kind}_roi_pool").output_size, device="meta")
    return detections * (_macs(head, pooled, convention) + _macs(predictor, head(pooled), convention))


def _macs(part: nn.Module, x: Tensor | Any, convention: str) -> int:
    return sum(without_values(part, Inputs((x,)), CONVENTIONS[convention]).values())


@torch.inference_mode()
def boxes_looked_at(net: nn.Module, images: Tensor | list[Tensor]) -> dict[str, Any]:
    """What a detector does with images: the size that enters the backbone, proposals and detections per image.

    As `detector_complexity` takes them, rounded up.
    """
    seen: dict[str, int] = {}

    def count(name):
        return lambda _, inputs: seen.__setitem__(name, len(inputs[0]))

    heads = net.roi_heads
    hooks = [heads.box_head.register_forward_pre_hook(count("proposals"))]
    hooks.append(net.backbone.register_forward_pre_hook(lambda _, inputs: seen.update(size=inputs[0].shape[-2:])))
    try:
        found = net(images)
    finally:
        for hook in hooks:
            hook.remove()
    detections = sum(len(one["boxes"]) for one in found)
    return {
        "size": tuple(seen["size"]),
        "proposals": math.ceil(seen["proposals"] / len(found)),
        "detections": math.ceil(detections / len(found)),
    }
