"""Image files that a user names: a file, a folder, or a list."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from norton.common.errors import InputError, warn
from norton.data.splits import DATASETS

# Not all that Pillow registers: films and documents are among them.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image(path: str | Path) -> bool:
    """Whether a file's ending is that of an image."""
    return Path(path).suffix.lower() in ENDINGS


def image_files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a list, or those of a folder and its subfolders that are images by their ending, sorted.

    Raises InputError for a folder without any.
    """
    paths = [Path(str(path)) for path in ([images] if isinstance(images, str | Path) else images)]
    if len(paths) == 1 and paths[0].is_dir():
        found = sorted(path for path in paths[0].rglob("*") if is_image(path) and path.is_file())
        if not found:
            raise InputError(f"the folder {paths[0]} holds no image file; their names end in {', '.join(ENDINGS)}")
        return found
    return paths


def read_picture(path: str | Path) -> Image.Image:
    """An image file in RGB, turned as its camera says.  Raises InputError for one that cannot be read."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut at 255
                image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot read {path} as an image ({error}); mend it or take it away") from None


def files_of_folder(folder: str | Path) -> list[Path]:
    """The image files of `calibration.folder`.  Raises InputError where it is missing or holds none."""
    if not Path(str(folder)).is_dir():
        raise InputError(f"calibration.folder: no folder at {folder}; give one with image files")
    return image_files(str(folder))


def read_pictures(
    folder: str | Path, input_size: Sequence[int], data: str, count: int | None, others: int | None = None
) -> Tensor:
    """`count` images of a folder, evenly from its sorted files: (N, 3, H, W), as a network of this size takes them.

    The shorter side is resized to 8/7 of the network's (256 for 224), of images of up to 64 pixels to the network's
    itself, and the centre cut out; normalised as the dataset `data` is for evaluation.  count: None for all; where the
    folder has fewer, all are taken, with a warning.  others: give instead so many, or fewer, of those that are left.

    Raises InputError for a folder that is missing or holds no images, and an image that cannot be read.
    """
    files = files_of_folder(folder)
    _, height, width = input_size
    side = min(height, width)
    module: Any = inspect.getmodule(DATASETS[data])
    transform = v2.Compose(
        [
            v2.Resize(side if side <= 64 else side * 8 // 7, antialias=True),
            v2.CenterCrop((height, width)),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(module.MEAN, module.STD),
        ]
    )
    if count is not None and len(files) < count and others is None:
        warn(f"{folder} holds {len(files)} images, of {count} asked for")
    chosen = _evenly(files, count or len(files))
    if others is not None:
        chosen = _evenly([path for path in files if path not in set(chosen)], others)
    pictures = [transform(read_picture(path)) for path in chosen]
    return torch.stack(pictures) if pictures else torch.empty(0, 3, height, width)


def _evenly(files: Sequence[Path], count: int) -> list[Path]:
    """So many files, or all, from all over the list, which may be sorted by class."""
    count = min(count, len(files))
    return [files[place * len(files) // count] for place in range(count)]
