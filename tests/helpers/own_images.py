"""Small images of classes that colours tell apart, written in true formats."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("blue", "green", "red")


def picture(label: int, random: np.random.Generator, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """Noise with one channel raised: the last for label 0."""
    pixels = random.integers(0, 120, (*size, 3), dtype=np.uint8)
    pixels[..., 2 - label] += 130
    return Image.fromarray(pixels)


def write_classes(folder: Path, counts: dict[str, int], seed: int = 0, ending: str = ".png") -> Path:
    """So many images of each class."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(CLASSES.index(name), random).save(folder / name / f"{number:03}{ending}")
    return folder
