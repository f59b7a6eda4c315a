"""Detectors that are small where their size is not the point."""

from contextlib import contextmanager

import pytest
from torchvision.models.detection import faster_rcnn, keypoint_rcnn, mask_rcnn

THIN = 32


@contextmanager
def thin():
    """torchvision fixes the widths of its heads, which then take most of the time, and of the room on disk."""
    boxes, points, masks = faster_rcnn.TwoMLPHead, keypoint_rcnn.KeypointRCNNHeads, mask_rcnn.MaskRCNNHeads
    found, where = faster_rcnn.FastRCNNPredictor, keypoint_rcnn.KeypointRCNNPredictor
    drawn = mask_rcnn.MaskRCNNPredictor
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faster_rcnn, "TwoMLPHead", lambda inputs, _: boxes(inputs, THIN))
        patch.setattr(faster_rcnn, "FastRCNNPredictor", lambda _, classes: found(THIN, classes))
        patch.setattr(keypoint_rcnn, "KeypointRCNNHeads", lambda inputs, widths: points(inputs, [THIN] * len(widths)))
        patch.setattr(keypoint_rcnn, "KeypointRCNNPredictor", lambda _, count: where(THIN, count))
        patch.setattr(mask_rcnn, "MaskRCNNHeads", lambda inputs, _, dilation: masks(inputs, [THIN] * 4, dilation))
        patch.setattr(mask_rcnn, "MaskRCNNPredictor", lambda _inputs, _reduced, classes: drawn(THIN, THIN, classes))
        yield


@pytest.fixture
def thin_heads():
    with thin():
        yield


@pytest.fixture(scope="module")
def thin_heads_throughout():
    with thin():
        yield
