"""Images in a folder per class, listed at the first use: who evaluates need not wait for a million to train on."""

import os
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from norton.common.errors import InputError
from norton.data.pictures import ENDINGS, is_image

LAYOUT = "one folder per class with its images inside"


class ClassFolders:
    """The images of the class folders in `path`, listed at the first use.

    classes: the folders that must be there, in the order of their labels, as the folder `like` beside it has them.
    data: the dataset's name, and layout: what a folder should hold, for messages.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], data: str, like: str = "", layout: str = LAYOUT):
        self.path = path
        self.classes = classes
        self.data = data
        self.like = like
        self.layout = layout

    @cached_property
    def samples(self) -> tuple[np.ndarray, Tensor]:
        """(N,) paths below `path` and (N,) int64 labels.

        The paths are one array of bytes: of a million Python strings each worker would soon hold a copy of its own.
        """
        return self.listed()

    def listed(self) -> tuple[np.ndarray, Tensor]:
        """The samples, class by class."""
        self._check_classes()
        paths, labels = [], []
        described = f"list {self.path.name}/"
        shown = track(self.classes, described, transient=True, disable=len(self.classes) < 100)
        with closing(shown) as names:  # its thread ends here, also where a folder is refused
            for label, name in enumerate(names):
                found = _list_class(self.path, name, self.data)
                paths += found
                labels += [label] * len(found)
        return np.array(paths), torch.tensor(labels)

    def file(self, path: Any) -> Path:
        """The file of one of the paths."""
        return self.path / os.fsdecode(bytes(path))

    def _check_classes(self) -> None:
        found = class_names(self.path, self.data, self.layout)
        if odd := sorted(set(found) ^ set(self.classes)):
            raise InputError(
                f"{self.data}: looked for the same classes in {self.like}/ and {self.path.name}/ of "
                f"{self.path.parent.absolute()}: of {len(odd)} that only one of them has, the first is {odd[0]}, "
                f"{'not ' if odd[0] not in found else ''}in {self.path.name}/; give both folders the same classes"
            )


def class_names(folder: Path, data: str, layout: str = LAYOUT, advice: str = "") -> tuple[str, ...]:
    """The class folders in a folder, sorted: their place is the label.  Hidden ones are none.

    Raises InputError where there are none, or images beside them.  advice: on what `root` should be.
    """
    looked = f"{data}: looked for class folders in {folder.absolute()}"
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise InputError(
            f"{looked}: {error.strerror or error}; it must hold {layout}; put it there, or set root to the folder that "
            f"has it{advice}"
        ) from error
    classes = tuple(name for name, is_dir in found if is_dir and not name.startswith("."))
    loose = [name for name, is_dir in found if not is_dir and is_image(name)]
    if loose:
        raise InputError(
            f"{looked}: found {len(loose)} images directly inside, such as {loose[0]}, and {len(classes)} folders; it "
            f"must hold {layout}; move each image into the folder of its class"
        )
    if not classes:
        raise InputError(f"{looked}: found none among {some(found)}; it must hold {layout}; unpack the images there")
    return classes


def some(found: list[tuple[str, bool]]) -> str:
    """What a folder holds, in short: [(name, whether a folder)] as words."""
    shown = ", ".join(name + "/" * is_dir for name, is_dir in found[:3])
    return f"{len(found)} entries ({shown}{', ...' if len(found) > 3 else ''})" if found else "0 entries"


def _list_class(folder: Path, name: str, data: str) -> list[bytes]:
    """The image files of one class, sorted, as paths below `folder`.  Raises InputError where there are none."""
    try:
        found = make_dataset(folder, {name: 0}, is_valid_file=is_image)
    except OSError as error:
        raise InputError(
            f"{data}: looked for images in {(folder / name).absolute()}: found none; every class needs at least one "
            f"file of {', '.join(ENDINGS)}; unpack the class's images there, or remove a folder that is no class"
        ) from error
    above = len(os.path.join(folder, ""))  # `os.path.relpath` would take as long as listing
    return [os.fsencode(path[above:]) for path, _ in found]
