"""Checkpoints of detectors: ours rebuild themselves, published ones are recognised by the shapes of their weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, KeypointRCNN_ResNet50_FPN_Weights

from detection.models import build_detector
from norton.checkpoints.files import FORMAT, read, write
from norton.checkpoints.published_layout import network_of_shapes
from norton.checkpoints.rebuilding import load_strictly_
from norton.common.errors import InputError
from norton.graph.plan import apply_plan_, plan_of
from norton.models import dense_network

BODY = "backbone.body."


def save_detector(
    net: nn.Module,
    path: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    lineage: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a detector that `load_detector` rebuilds: kind, options, the backbone's plan, weights, metrics, lineage."""
    return write(net, path, {"detector": net.recipe}, metrics, lineage)


def load_detector(path: str | Path, **options: Any) -> nn.Module:
    """The detector of a checkpoint, in evaluation mode, on the CPU.

    A file of `save_detector` rebuilds itself.  A published one (`{"model": ...}`, or a bare state_dict) is recognised
    by names and shapes of its weights: kind, classes, keypoints, frozen BatchNorm, the backbone's rank and widths.
    options: of the torchvision class, such as min_size, in the place of those in the file.

    Raises InputError as `norton.load` does, and for a file that holds no detector over a ResNet-50.
    """
    content = read(path)
    state = {key.removeprefix("module."): value for key, value in content["state_dict"].items()}
    recipe, plan = _own(content, path) if "detector" in content else _published(state, path)
    with torch.device("meta"):  # drawing initial weights, to be replaced, would take longer than to read the file
        net = build_detector(backbone=apply_plan_(dense_network("resnet_50"), plan), **{**recipe, **options})
    _draw_anchors_(net.rpn.anchor_generator)
    load_strictly_(net, state, path)
    return net.eval()


def start_from_(net: nn.Module, trained: nn.Module) -> list[str]:
    """Give a detector all weights of another one that fit by name and shape, in place; returns the names of the others.

    So a Mask R-CNN goes on from a Faster R-CNN, and a detector from one of other classes.
    """
    mine, theirs = net.state_dict(), trained.state_dict()
    fitting = {key for key in mine if key in theirs and theirs[key].shape == mine[key].shape}
    net.load_state_dict({key: theirs[key] if key in fitting else value for key, value in mine.items()})
    return [key for key in mine if key not in fitting]


def _draw_anchors_(generator: nn.Module) -> None:
    """Give a generator that was made without values its anchors, which are in no state_dict."""
    pairs = zip(generator.sizes, generator.aspect_ratios, strict=True)
    generator.cell_anchors = [generator.generate_anchors(*pair) for pair in pairs]


def _own(content: Mapping[str, Any], path) -> tuple[dict[str, Any], list[dict]]:
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r} is not {FORMAT}; use the version that wrote it")
    if not isinstance(content["detector"], dict) or not isinstance(content.get("plan"), list):
        raise InputError(f"{path}: its detector or plan is missing or of the wrong type; write the file again")
    return content["detector"], content["plan"]


def _published(state: Mapping[str, Tensor], path) -> tuple[dict[str, Any], list[dict]]:
    """What the names and shapes of a published detector tell of it."""
    if "roi_heads.box_predictor.cls_score.weight" not in state:
        raise InputError(f"{path}: holds no detector of torchvision; classification networks open with norton.load")
    heads = {key.split(".")[1] for key in state if key.startswith("roi_heads.")}
    kind = next((kind for kind in ("mask", "keypoint") if f"{kind}_head" in heads), "faster")
    recipe = {"kind": f"{kind}rcnn", "num_classes": len(state["roi_heads.box_predictor.cls_score.weight"])}
    recipe["frozen_batchnorm"] = not any(key.endswith("num_batches_tracked") for key in state)
    if kind == "keypoint":
        recipe["num_keypoints"] = state["roi_heads.keypoint_predictor.kps_score_lowres.weight"].shape[1]
    recipe["categories"] = _coco_categories(kind, recipe["num_classes"])
    body = {key.removeprefix(BODY): value for key, value in state.items() if key.startswith(BODY)}
    with torch.device("meta"):
        body |= {"fc.weight": torch.empty(1000, 2048), "fc.bias": torch.empty(1000)}  # what a backbone leaves behind
    return recipe, plan_of(network_of_shapes(body, path, "resnet_50"))


def _coco_categories(kind: str, num_classes: int) -> dict[int, str]:
    """The names of COCO's classes, where there are as many of them."""
    weights = KeypointRCNN_ResNet50_FPN_Weights if kind == "keypoint" else FasterRCNN_ResNet50_FPN_Weights
    names = weights.COCO_V1.meta["categories"][: None if kind != "keypoint" else 2]
    if len(names) != num_classes:
        return {}
    return {label: name for label, name in enumerate(names) if label and name != "N/A"}
