"""Scores by pycocotools: COCO's numbers for boxes, masks and keypoints."""

import contextlib
import copy
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from detection.coco import encode

NAMES = {
    "bbox": ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"),
}
NAMES["segm"] = NAMES["bbox"]
PARTS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # what a result of each type holds
TYPES = {"boxes": ("bbox",), "masks": ("bbox", "segm"), "keypoints": ("bbox", "keypoints")}


def results_of(image_id: int, found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """What a detector found in an image, in COCO's result format."""
    boxes = found["boxes"].cpu()
    boxes = boxes.clone()
    boxes[:, 2:] -= boxes[:, :2]
    results = []
    for number, (box, label, score) in enumerate(
        zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ):
        one = {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
        if "masks" in found:
            one["segmentation"] = encode(found["masks"][number, 0] > 0.5)
        if "keypoints" in found:
            one["keypoints"] = found["keypoints"][number].flatten().tolist()
        results.append(one)
    return results


def results_for(results: Sequence[Mapping[str, Any]], iou: str) -> list[dict[str, Any]]:
    """A COCO result file's content for one type; with the parts of others COCO would take areas from those."""
    keys = ("image_id", "category_id", PARTS[iou], "score")
    return [{key: one[key] for key in keys} for one in results]


def score(
    annotations: COCO,
    results: Sequence[Mapping[str, Any]],
    kind: str = "boxes",
    *,
    image_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> dict[str, dict[str, float | None]]:
    """COCO's numbers in [0, 1] per type (bbox, and segm or keypoints); None where no object is of that size.

    image_ids: which images count, all by default.  sigmas: one per keypoint, those of COCO's people by default.
    """
    known = {one["id"] for one in annotations.dataset["categories"]}
    results = [one for one in results if one["category_id"] in known]  # COCO's labels have gaps
    scores = {}
    for iou in TYPES[kind]:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints tables of its own
            found = _opened(annotations, results_for(results, iou))
            evaluation = COCOeval(annotations, found, iou)
            if iou == "keypoints" and sigmas is not None:
                evaluation.params.kpt_oks_sigmas = np.array(sigmas)
            if image_ids is not None:
                evaluation.params.imgIds = sorted(image_ids)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        numbers = [None if value < 0 else float(value) for value in evaluation.stats]
        scores[iou] = dict(zip(NAMES[iou], numbers, strict=True))
    return scores


def _opened(annotations: COCO, results: list[dict[str, Any]]) -> COCO:
    """Results as pycocotools wants them, which cannot open none."""
    if results:
        return annotations.loadRes(copy.deepcopy(results))
    empty = COCO()
    empty.dataset = {**annotations.dataset, "annotations": []}
    empty.createIndex()
    return empty
