"""`folder`: the user's own images, a folder per class, with or without folders `train`, `val` and `test` above them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from norton.common.errors import InputError, warn
from norton.data.assembling import Presentation, Source, assemble, cores, presented
from norton.data.folders import ClassFolders, class_names
from norton.data.pictures import read_picture
from norton.data.splits import DATASETS, Splits

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
NAMES = {split: [f"{name}{end}" for name in names for end in ("", "_set", "set")] for split, names in _SPLITS.items()}
FEW = 200  # images, up to which there is no wait to show
BROKEN = ("refuse", "skip")
ADVICE = ": train/, val/ and test/ with a folder per class each, or those folders alone"


class FolderPictures:
    """The pictures of class folders; broken: "skip" reads all of them once, and leaves out what cannot be read."""

    def __init__(self, folders: ClassFolders, broken: str):
        self.folders = folders
        self.broken = broken

    @cached_property
    def _samples(self) -> tuple[np.ndarray, Tensor]:
        paths, labels = self.folders.samples
        if self.broken == "refuse":
            return paths, labels
        whole = torch.tensor(self._readable([self.folders.file(path) for path in paths]))
        missing = set(range(len(self.folders.classes))) - set(labels[whole].tolist())
        if missing:
            raise InputError(
                f"data folder: no image of {self.folders.path / self.folders.classes[min(missing)]} can be read; give "
                "the class whole images, or remove its folder"
            )
        return paths[whole.numpy()], labels[whole]

    def _readable(self, files: Sequence[Path]) -> list[bool]:
        with ThreadPoolExecutor(cores()) as threads:
            results = threads.map(_readable, files)
            described = f"look at {self.folders.path.name}/"
            whole = list(track(results, described, len(files), transient=True, disable=len(files) < FEW))
        broken = [str(file) for file, fine in zip(files, whole, strict=True) if not fine]
        if broken:
            count = f"{len(broken)} image{'s' * (len(broken) > 1)}"
            more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
            warn(f"data folder: {count} cannot be read: left out are {', '.join(broken[:3])}{more}")
        return whole

    @property
    def labels(self) -> Tensor:
        return self._samples[1]

    @property
    def names(self) -> list[bytes]:
        """The files, as paths below the folder."""
        return self._samples[0].tolist()

    def picture(self, number: int) -> Image.Image:
        try:
            return read_picture(self.folders.file(self._samples[0][number]))
        except InputError as error:
            raise InputError(f"data folder: {error}, or leave out all such with data.broken=skip") from None


def _readable(file: Path) -> bool:
    try:
        read_picture(file)
    except InputError:
        return False
    return True


@DATASETS.register("folder")
@presented
def folder(root: Path, seed: int, how: Presentation, broken: str = "refuse") -> Splits:
    """Images of any format and size in a folder per class; splits without a folder of their own are drawn from train/.

    broken: "refuse" stops at an image that cannot be read, "skip" leaves such out.
    """
    if broken not in BROKEN:
        raise InputError(f"data folder: broken is {broken!r}; choose one of {', '.join(BROKEN)}")
    found = layout(root)
    first = found.get("test", found.get("val", found["train"]))  # so that who evaluates need not have train/
    classes = class_names(first, "data folder", advice=ADVICE)
    if len(classes) < 2:
        raise InputError(
            f"data folder: {first} has only one class, {classes[0]}; there must be two or more to tell apart"
        )
    sources: dict[str, Source] = {
        split: FolderPictures(ClassFolders(path, classes, "data folder", first.name), broken)
        for split, path in found.items()
    }
    return assemble("folder", sources, classes, seed, how)


def layout(root: Path) -> dict[str, Path]:
    """Split → its folder; of class folders directly in `root`, all are for training.

    Folders beside those of splits are left out, with a warning.  Raises InputError for two folders that mean the same
    split, and a root that is none.
    """
    try:
        with os.scandir(root) as entries:
            folders = sorted(one.name for one in entries if one.is_dir() and not one.name.startswith("."))
    except OSError as error:
        raise InputError(
            f"data folder: looked for images in {root.absolute()}: {error.strerror or error}; set data.root to the "
            f"folder that has them{ADVICE}"
        ) from None
    found: dict[str, Path] = {}
    for split, names in NAMES.items():
        meant = [name for name in folders if name.lower() in names]
        if len(meant) > 1:
            raise InputError(f"data folder: {' and '.join(meant)} in {root.absolute()} mean the same; leave one there")
        if meant:
            found[split] = root / meant[0]
    used = {path.name for path in found.values()}
    others = [name for name in folders if name not in used]
    if "train" not in found:
        _note_what_look_like_splits(root, others)
    if others and not any(one.is_dir() for path in found.values() for one in path.iterdir()):
        return {"train": root}  # they hold images, as the others do: classes that happen to be called so
    if "train" in found or (found and not others):
        if others:
            warn(
                f"data folder: of {root.absolute()} only {', '.join(sorted(used))} count; left out are "
                f"{', '.join(others[:5])}{', ...' * (len(others) > 5)}"
            )
        missing = NAMES if "train" not in found else ("train",)  # nothing to draw from: who evaluates need not have it
        return dict.fromkeys(missing, root / "train") | found
    return {"train": root}  # class folders


def _note_what_look_like_splits(root: Path, folders: Sequence[str]) -> None:
    """Warn of class folders that all have the same folders inside, which may be the classes."""
    inside = []
    for name in folders:
        with os.scandir(root / name) as entries:
            inside.append({one.name for one in entries if one.is_dir() and not one.name.startswith(".")})
        if len(inside[0]) < 2 or inside[-1] != inside[0]:
            return
    if len(inside) > 1:
        warn(
            f"data folder: {', '.join(folders[:4])} in {root.absolute()} count as classes, and all have the folders "
            f"{', '.join(sorted(inside[0])[:4])}; if those are the classes, call the ones above train, val and test"
        )
