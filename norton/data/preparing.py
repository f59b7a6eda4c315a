"""What a network takes of a picture: resized, cut to its size, in colour or grey, as pixels from 0 to 255."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from norton.common.checks import is_whole_number
from norton.common.errors import InputError

WHOLE = 64  # pixels of the shorter side, up to which images are taken whole
MODES = {1: "L", 3: "RGB"}  # channels → Pillow's name of them


@dataclass(frozen=True)
class Preparation:
    """Pictures as a network of this size takes them.

    height, width: of its images.  channels: 3 for colour, 1 for grey.  A picture is resized until it covers `box`,
    which is 8/7 of the size (256 pixels for 224), or the size itself where that is at most 64 pixels; its middle is cut
    out: all of the box to augment, the size itself to evaluate.
    """

    height: int
    width: int
    channels: int = 3

    @property
    def box(self) -> tuple[int, int]:
        """Height and width of what a picture is first cut to."""
        if min(self.height, self.width) <= WHOLE:
            return self.height, self.width
        return self.height * 8 // 7, self.width * 8 // 7

    def __call__(self, picture: Image.Image) -> Tensor:
        """The middle of a picture, (channels, *box) uint8."""
        height, width = self.box
        if picture.width * height < picture.height * width:  # too narrow: the width decides
            size = (width, max(height, picture.height * width // picture.width))
        else:
            size = (max(width, picture.width * height // picture.height), height)
        picture = picture.convert(MODES[self.channels])
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)  # Pillow's averages what it makes smaller
        pixels = torch.from_numpy(np.array(picture)).view(size[1], size[0], self.channels).permute(2, 0, 1)
        return cut(pixels, height, width).contiguous()

    def middle(self, images: Tensor) -> Tensor:
        """The middle of images (..., H, W), as for evaluation: (..., height, width)."""
        return cut(images, self.height, self.width)


def cut(images: Tensor, height: int, width: int) -> Tensor:
    """The middle of images (..., H, W) that are at least as large."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def preparation(data: str, size: Any, channels: Any) -> Preparation:
    """The preparation that settings ask for.

    size: a number, or [height, width].  channels: 1 or 3.  Raises InputError for others.
    """
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, Sequence) or len(sides) != 2 or not all(is_whole_number(n, 1) for n in sides):
        raise InputError(f"data {data}: size {size!r} is no size of an image; give pixels, e.g. 32, or [height,width]")
    if not is_whole_number(channels) or channels not in MODES:
        raise InputError(f"data {data}: channels {channels!r} must be 3 (colour) or 1 (grey)")
    return Preparation(sides[0], sides[1], channels)
