"""Images with masks, written in true formats, and tiny networks for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

IGNORED = 255


def pair(random: np.random.Generator, size: tuple[int, int] = (20, 24)) -> tuple[Image.Image, Image.Image]:
    """A picture and its mask: classes 0 to 2 in stripes of random widths, each a colour, and a line to ignore."""
    height, width = size
    ends = np.sort(random.integers(4, width - 4, 2))
    mask = np.repeat(np.searchsorted(ends, np.arange(width), side="right")[None], height, axis=0).astype(np.uint8)
    pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
    pixels[np.arange(height)[:, None], np.arange(width)[None], mask] += 150
    mask[0] = IGNORED
    return Image.fromarray(pixels), Image.fromarray(mask)


def write_pairs(images: Path, masks: Path, count: int, seed: int = 0, size: tuple[int, int] = (20, 24)) -> None:
    random = np.random.default_rng(seed)
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture, mask = pair(random, size)
        picture.save(images / f"{number:03}.jpg", quality=95)
        mask.save(masks / f"{number:03}.png")


def write_folder(root: Path, count: int = 20, seed: int = 0) -> Path:
    """`images/` and `masks/` without splits."""
    write_pairs(root / "images", root / "masks", count, seed)
    return root


class Small(nn.Module):
    """Logits of half the height and width."""

    input_size = (3, 16, 16)

    def __init__(self, num_classes: int = 3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1))
        self.head = nn.Conv2d(16, num_classes, 1)

    def forward(self, x):
        return self.head(self.body(x).relu())


class WithAuxiliary(Small):
    """A dict, as torchvision's networks give it."""

    def __init__(self, num_classes: int = 3):
        super().__init__(num_classes)
        self.auxiliary = nn.Conv2d(16, num_classes, 1)

    def forward(self, x):
        x = self.body(x)
        return {"out": self.head(x.relu()), "aux": self.auxiliary(x)}


def seeded(make=Small, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()
