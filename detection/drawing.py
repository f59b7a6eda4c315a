"""What a detector found, drawn on the image: boxes, masks, keypoints, and a line above that says whose they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

LEAST_SIDE = 384  # a picture's smaller side; smaller images are enlarged, or nobody could read their labels
FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # torchvision wants a file
FONT_SIZE = 14
COLOURS = ["#e6194b", "#3cb44b", "#ffe119", "#4363d8", "#f58231", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#469990"]


def draw(image: Tensor, found: Mapping[str, Tensor], categories: Mapping[int, str], threshold: float = 0.5) -> Tensor:
    """The image (3, H, W) uint8 with what was found on it, enlarged to LEAST_SIDE pixels at least.

    found: of one image, as torchvision's detectors give it.  categories: label → name; a label without name is written
    as a number.  threshold: the least score of what is drawn.
    """
    # The best come first and are drawn last, over the others.
    found = {key: value[found["scores"] >= threshold].flip(0).cpu() for key, value in found.items()}
    scale = max(1, -(-LEAST_SIDE // min(image.shape[-2:])))
    picture = image.cpu().repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    labels = found["labels"].tolist()
    if not labels:
        return picture
    colours = [COLOURS[label % len(COLOURS)] for label in labels]
    if "masks" in found:
        masks = F.interpolate(found["masks"], scale_factor=scale, mode="bilinear")[:, 0] > 0.5
        picture = draw_segmentation_masks(picture, masks, alpha=0.45, colors=colours)
    names = [
        f"{categories.get(label, label)} {100 * score:.0f}%"
        for label, score in zip(labels, found["scores"].tolist(), strict=True)
    ]
    picture = draw_bounding_boxes(
        picture,
        scale * found["boxes"],
        names,
        colours,
        width=2,
        font=FONT,
        font_size=FONT_SIZE,
        label_colors=["black"] * len(names),
        label_background_colors=colours,
        fill_labels=True,
    )
    if "keypoints" in found:
        for points, colour in zip(scale * found["keypoints"][..., :2], colours, strict=True):
            picture = draw_keypoints(picture, points[None], colors="white", radius=5)
            picture = draw_keypoints(picture, points[None], colors=colour, radius=3)
    return picture


def titled(picture: Tensor, title: str) -> Tensor:
    """A picture (3, H, W) uint8 below a strip with a line or more of text."""
    font = ImageFont.truetype(FONT, FONT_SIZE)
    lines = title.splitlines()
    strip = Image.new("RGB", (picture.shape[-1], 8 + (FONT_SIZE + 4) * len(lines)), "white")
    ImageDraw.Draw(strip).multiline_text((4, 3), title, "black", font, spacing=4)
    return torch.cat([torch.from_numpy(np.array(strip)).permute(2, 0, 1), picture], 1)


def side_by_side(pictures: Sequence[Tensor], gap: int = 6) -> Tensor:
    """Pictures (3, H, W) of one height in a row."""
    space = torch.full((3, pictures[0].shape[1], gap), 255, dtype=torch.uint8)
    return torch.cat([part for picture in pictures for part in (space, picture)][1:], 2)


def stacked(pictures: Sequence[Tensor], gap: int = 6) -> Tensor:
    """Pictures (3, H, W) below each other, narrower ones with white at their right."""
    width = max(picture.shape[2] for picture in pictures)
    return torch.cat([F.pad(picture, (0, width - picture.shape[2], 0, gap), value=255) for picture in pictures], 1)
