"""Masks of classes: image files whose values are class numbers, and the pictures that they belong to."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from norton.common.errors import InputError, warn
from norton.data.assembling import cores
from norton.data.pairs import Pair
from norton.data.pictures import UNREADABLE, read_picture

BLACK_AND_WHITE = np.array([0, *[2] * 254, 1], dtype=np.uint8)  # the classes of 0 and 255, and of others none
FEW = 200  # masks, up to which there is no wait to show
LOSSY = ("JPEG", "MPO")  # Pillow's names of formats
EXPECTED = "a mask is a grey or palette image, such as PNG, whose values are the numbers of classes: 0, 1, 2, ..."


class Files(NamedTuple):
    """Pictures and the masks of the same places."""

    images: Sequence[Path]
    masks: Sequence[Path]


class MaskedPictures:
    """Pictures with masks, read one at a time.

    listed: gives the files, at the first use.  classes: how many there are.  ignore: the value of pixels that do not
    count.  numbers: (256,) uint8, the class of each value in the files, where they are not those of the classes.
    """

    def __init__(
        self,
        data: str,
        listed: Callable[[], Files],
        classes: int,
        ignore: int | None,
        numbers: np.ndarray | None = None,
    ):
        self.data, self.listed, self.classes, self.ignore, self.numbers = data, listed, classes, ignore, numbers

    @cached_property
    def files(self) -> Files:
        return self.listed()

    @property
    def labels(self) -> Tensor:
        """All alike: which classes a picture shows decides nothing."""
        return torch.zeros(len(self.files.images), dtype=torch.int64)

    @property
    def names(self) -> list[bytes]:
        """The names of the pictures."""
        return [path.name.encode(errors="surrogateescape") for path in self.files.images]

    def picture(self, number: int) -> Pair:
        """Raises InputError for a mask that does not fit its picture, or has other values than classes."""
        image, path = self.files.images[number], self.files.masks[number]
        try:
            picture, values = read_picture(image), read_mask(path)
        except InputError as error:
            raise InputError(f"data {self.data}: {error}") from None
        if picture.size != values.shape[::-1]:
            ours, theirs = (f"{width}×{height}" for width, height in (values.shape[::-1], picture.size))
            raise InputError(f"data {self.data}: {path} has {ours} pixels, its image {image.name} {theirs}; mend one")
        return picture, Image.fromarray(self._classes(values, path))

    def _classes(self, values: np.ndarray, path: Path) -> np.ndarray:
        """The class of each pixel."""
        found = values if self.numbers is None else self.numbers[values]
        odd = values[(found >= self.classes) & (found != (-1 if self.ignore is None else self.ignore))]
        if odd.size:
            ignored = "no value is ignored" if self.ignore is None else f"{self.ignore} is ignored"
            known = f"0 to {self.classes - 1}"
            if self.numbers is not None:
                known = ", ".join(map(str, np.flatnonzero(self.numbers < self.classes)))
            raise InputError(
                f"data {self.data}: {path} has the value {odd.min()}, and the {self.classes} classes are {known}, "
                f"where {ignored}; set data.classes or data.ignore, or mend the mask"
            )
        return found


def read_mask(path: str | Path) -> np.ndarray:
    """The class numbers of a mask, (H, W) uint8.  Raises InputError for others, and for JPEG."""
    try:
        with Image.open(path) as file:
            kind, mode, values = file.format, file.mode, np.asarray(file)
    except UNREADABLE as error:
        raise InputError(f"cannot read {path} as a mask ({' '.join(str(error).split())}); mend it") from None
    if values.ndim != 2 or values.dtype.kind == "f":
        raise InputError(f"{path} is of {mode}, not of class numbers; {EXPECTED}; convert it")
    if kind in LOSSY:
        raise InputError(f"{path} is a {kind}, which does not keep numbers as they are; save masks as PNG")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise InputError(f"{path} has the value {values.max()}; class numbers go up to 255; convert it")
    return values.astype(np.uint8)


def values_in(data: str, masks: Sequence[Path]) -> list[int]:
    """All values of some masks, sorted."""

    def values(path: Path) -> np.ndarray:
        return np.bincount(read_mask(path).ravel(), minlength=256) > 0

    with ThreadPoolExecutor(cores()) as threads:
        found = track(threads.map(values, masks), "classes", len(masks), transient=True, disable=len(masks) < FEW)
        try:
            return np.flatnonzero(np.logical_or.reduce(list(found))).tolist()
        except InputError as error:
            raise InputError(f"data {data}: {error}") from None


def count_classes(data: str, values: Sequence[int], ignore: int | None) -> int:
    """One more than the largest of the values that masks have; a warning names how few of so many occur.

    Raises InputError where that is below 2.
    """
    counted = [value for value in values if value != ignore]
    count = max(counted, default=0) + 1
    if count < 2:
        but = "" if ignore is None else f", and {ignore}, which is ignored (data.ignore)"
        raise InputError(f"data {data}: its masks have only the class 0{but}; there must be two or more to tell apart")
    if len(counted) < count / 2:
        shown = ", ".join(map(str, counted[:9])) + ", ..." * (len(counted) > 9)
        warn(
            f"data {data}: {count} classes, as the masks have values up to {count - 1}, but only {len(counted)} occur: "
            f"{shown}; data.classes says how many, data.ignore which value does not count"
        )
    return count
