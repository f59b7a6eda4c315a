"""Image files that a user names: a file, a folder, or a list."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from norton.common.errors import InputError, warn
from norton.data.normalising import Normalisation, normalised
from norton.data.preparing import preparation

# Not all that Pillow registers: films and documents are among them.
ENDINGS = (
    *(".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx"),
    *(".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
)

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises, for all its formats


def is_image(path: str | Path) -> bool:
    """Whether a file's ending is that of an image, and the file is not hidden."""
    name = os.path.basename(path)  # much faster than Path for a million of them
    return os.path.splitext(name)[1].lower() in ENDINGS and not name.startswith(".")


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
    """An image file in RGB or grey (mode L), turned as its camera says; of a film the first picture.

    Raises InputError for one that cannot be read, and for pixels whose range is not known.
    """
    try:
        with Image.open(path) as file:
            return plain_picture(file)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read {path} as an image ({reason}); mend it or take it away") from None


def plain_picture(image: Image.Image) -> Image.Image:
    """A picture in RGB or grey (mode L), turned as its camera says.

    16 bits become 8, palettes colours, and transparency is left out, as torchvision does.  Raises ValueError for pixels
    whose range is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":  # 16 bits, which Pillow would cut at 255
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # directly to RGB, Pillow would warn
    return image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels of 16 bits, in whatever type, as uint8.  Raises ValueError for what is none, or may be of 8 bits."""
    unclear = 0 < pixels.max() < 256  # 8 bits in 16 or 32 would come out black
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 65535 or unclear:
        raise ValueError(
            f"its pixels are of {8 * pixels.itemsize} bits, from {pixels.min():g} to {pixels.max():g}, so what is "
            "white is not known; save it with 8 bits, or with 16 of which white is 65535"
        )
    if 0 < pixels.max() < 4096:
        warn(
            "images of 16 bits have no pixel above 4095, of 65535; if they are of 12 bits, scale them, or they are dark"
        )
    return (pixels.astype(np.int64) // 256).astype(np.uint8)


def files_of_folder(folder: str | Path) -> list[Path]:
    """The image files of `calibration.folder`.  Raises InputError where it is missing or holds none."""
    if not Path(str(folder)).is_dir():
        raise InputError(f"calibration.folder: no folder at {folder}; give one with image files")
    return image_files(str(folder))


def read_pictures(
    folder: str | Path,
    input_size: Sequence[int],
    how: Normalisation,
    count: int | None,
    data: str = "of the folder",
    others: int | None = None,
) -> Tensor:
    """`count` images of a folder, evenly from its sorted files: (N, C, H, W), as `read_files` gives them.

    count: None for all; where the folder has fewer, all are taken, with a warning.  others: give instead so many, or
    fewer, of those that are left.

    Raises InputError for a folder that is missing or holds no images, and an image that cannot be read.
    """
    files = files_of_folder(folder)
    if count is not None and len(files) < count and others is None:
        warn(f"{folder} holds {len(files)} images, of {count} asked for")
    chosen = _evenly(files, count or len(files))
    if others is not None:
        taken = set(chosen)
        chosen = _evenly([path for path in files if path not in taken], others)
    return read_files(chosen, input_size, how, data) if chosen else torch.empty(0, *input_size)


def _evenly(files: Sequence[Path], count: int) -> list[Path]:
    """So many files, or all, from all over the list, which may be sorted by class."""
    count = min(count, len(files))
    return [files[place * len(files) // count] for place in range(count)]


def read_files(files: Sequence[Path], input_size: Sequence[int], how: Normalisation, data: str) -> Tensor:
    """Images (N, C, H, W) as a network of this size takes them, prepared and normalised as for evaluation.

    input_size: (channels, height, width).  how: the normalisation of `data`, which are named in messages.
    """
    channels, height, width = input_size
    prepare = preparation(data, (height, width), channels)
    if len(how[0]) != channels:
        raise InputError(
            f"the data {data} are normalised in {len(how[0])} channels, and the network takes {channels}; choose "
            "another data=, or set data.mean and data.std"
        )
    return normalised(torch.stack([prepare.middle(prepare(read_picture(path))) for path in files]), how)
