"""Image files that a user names: a file, a folder, or a list."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from norton.errors import InputError

# Not all that Pillow registers: films and documents are among them.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def is_image(path: str | Path) -> bool:
    """Whether a file's ending is that of an image."""
    return Path(path).suffix.lower() in ENDINGS


def image_files(images: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files of a list, or those of a folder that are images by their ending, sorted.

    Raises InputError for a folder without any.
    """
    paths = [Path(str(path)) for path in ([images] if isinstance(images, str | Path) else images)]
    if len(paths) == 1 and paths[0].is_dir():
        found = sorted(path for path in paths[0].iterdir() if is_image(path))
        if not found:
            raise InputError(f"images: the folder {paths[0]} holds no image file")
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
        raise InputError(f"images: cannot read {path} as an image ({error})") from None
