"""`imagenet`: ImageNet by the published protocol, from the user's folders `train/<class>/` and `val/<class>/`.

Nothing is listed before it is used, so who evaluates needs `val/` alone and does not wait for the 1.28 million files
of `train/`.
"""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, is_image_file, make_dataset, pil_loader
from torchvision.transforms import v2

from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.data.normalising import NAMED
from norton.data.splits import DATASETS, Splits, generator, stratified_order

MEAN, STD = NAMED["imagenet"]
SIZE, RESIZED = 224, 256
LAYOUT = "one folder per class with its images inside, e.g. n01440764/ILSVRC2012_val_00000293.JPEG"


class ClassFolders:
    """The images of the class folders in `path`, listed at the first use.

    classes: the folders that must be there, in the order of their labels.  seed: puts the images in a stratified order
    (None leaves them class by class), so that each piece of it has the class proportions of the whole.  cut: must leave
    at least one image on either side.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], seed: int | None = None, cut: int = 0):
        self.path = path
        self.classes = classes
        self.seed = seed
        self.cut = cut

    @cached_property
    def samples(self) -> tuple[np.ndarray, Tensor]:
        """(N,) paths below `path` and (N,) int64 labels.

        The paths are one array of bytes: of a million Python strings each worker would soon hold a copy of its own.
        """
        self._check_classes()
        paths, labels = [], []
        described = f"list {self.path.name}/"
        for label, name in enumerate(track(self.classes, described, transient=True, disable=len(self.classes) < 100)):
            found = _list_class(self.path, name)
            paths += found
            labels += [label] * len(found)
        paths, labels = np.array(paths), torch.tensor(labels)
        if self.seed is None:
            return paths, labels
        if not 1 <= self.cut < len(labels):
            raise InputError(
                f"imagenet: validation {self.cut} must be from 1 to {len(labels) - 1}, as {self.path.absolute()} has "
                f"{len(labels)} images to train on and to hold out from; set validation to fewer"
            )
        order = stratified_order(labels, self.seed)
        return paths[order.numpy()], labels[order]

    def _check_classes(self) -> None:
        found = class_names(self.path)
        if odd := sorted(set(found) ^ set(self.classes)):
            raise InputError(
                f"imagenet: looked for the same classes in train/ and val/ of {self.path.parent.absolute()}: of "
                f"{len(odd)} that only one of them has, the first is {odd[0]}, "
                f"{'not ' if odd[0] not in found else ''}in {self.path.name}/; give both folders the same classes"
            )


class FolderImages(Dataset):
    """Part of the images of `folders`, transformed; gives (image, label): a float tensor (3, 224, 224) and an integer.

    seed: of a random transform, None for a fixed one.  What happens to an image depends on (seed, epoch, index) alone,
    and torch's global generator is left as it was.  The epoch is 0 until `set_epoch`.

    Raises InputError at the first length or image where the folders are not as they must be, and for an image that
    cannot be read.
    """

    def __init__(self, folders: ClassFolders, part: slice, transform: nn.Module, seed: int | None = None):
        self.folders = folders
        self.part = part
        self.transform = transform
        self.seed = seed
        self.set_epoch(0)

    @property
    def paths(self) -> np.ndarray:
        return self.folders.samples[0][self.part]

    @property
    def labels(self) -> Tensor:
        return self.folders.samples[1][self.part]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        index = range(len(self))[index]  # the same image, and augmentation, by its negative index; IndexError beyond
        image = read_image(self.folders.path / os.fsdecode(bytes(self.paths[index])))
        # Contiguous, or a batch would be laid out, and so convolved, otherwise with workers than without.
        return self._transformed(image, index).contiguous(), int(self.labels[index])

    def _transformed(self, image: Image.Image, index: int) -> Tensor:
        if self.seed is None:
            return self.transform(image)
        # torchvision draws from the global generator. `manual_seed` would reach those of the accelerators as well.
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(generator(self.seed, self.epoch, index).get_state())
            return self.transform(image)


def read_image(path: Path) -> Image.Image:
    """The picture in RGB.  Raises InputError where it cannot be read."""
    try:
        return pil_loader(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's, for all its formats
        reason = " ".join(str(error).split())
        raise InputError(
            f"imagenet: cannot read the image {path.absolute()} ({type(error).__name__}: {reason}); it should be a "
            "whole image file: unpack it again"
        ) from error


def class_names(folder: Path) -> tuple[str, ...]:
    """The class folders of `train/` or `val/`, sorted: their place is the label, as in the published networks.

    Raises InputError where there are none, or images beside them: the original archive of validation images unpacks
    without class folders.
    """
    looked = f"imagenet: looked for class folders in {folder.absolute()}"
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
    except OSError as error:
        raise InputError(
            f"{looked}: {error.strerror or error}; it must hold {LAYOUT}; put it there, or set root to the folder that "
            "has it: train/ is for training, validation and calibration, val/ for the test"
        ) from error
    classes = tuple(name for name, is_dir in found if is_dir)
    loose = [name for name, is_dir in found if not is_dir and is_image_file(name)]
    if loose:
        raise InputError(
            f"{looked}: found {len(loose)} images directly inside, such as {loose[0]}, and {len(classes)} folders; it "
            f"must hold {LAYOUT}; move each image into the folder of its class"
        )
    if not classes:
        raise InputError(f"{looked}: found none among {_some(found)}; it must hold {LAYOUT}; unpack the images there")
    return classes


def _list_class(folder: Path, name: str) -> list[bytes]:
    """The image files of one class, sorted, as paths below `folder`.  Raises InputError where there are none."""
    try:
        found = make_dataset(folder, {name: 0}, extensions=IMG_EXTENSIONS)
    except OSError as error:
        raise InputError(
            f"imagenet: looked for images in {(folder / name).absolute()}: found none; every class needs at least one "
            f"file of {', '.join(IMG_EXTENSIONS)}; unpack the class's images there, or remove a folder that is no class"
        ) from error
    above = len(os.path.join(folder, ""))  # `os.path.relpath` would take as long as listing
    return [os.fsencode(path[above:]) for path, _ in found]


def _some(found: list[tuple[str, bool]]) -> str:
    """What a folder holds, in short: [(name, whether a folder)] as words."""
    shown = ", ".join(name + "/" * is_dir for name, is_dir in found[:3])
    return f"{len(found)} entries ({shown}{', ...' if len(found) > 3 else ''})" if found else "0 entries"


def _classes_of(root: Path) -> tuple[str, ...]:
    """The class names, from `val/`, or `train/` where that is absent."""
    for name in ("val", "train"):
        if (root / name).is_dir():
            return class_names(root / name)
    looked = f"imagenet: looked for the folders train and val in {root.absolute()}"
    found = "no such folder"
    if root.is_dir():
        with os.scandir(root) as entries:
            found = f"found {_some(sorted((entry.name, entry.is_dir()) for entry in entries))}"
    elif root.exists():
        found = "not a folder"
    raise InputError(f"{looked}: {found}; each must hold {LAYOUT}; set root to the folder that has them")


@DATASETS.register("imagenet")
def imagenet(root: Path, seed: int, validation: int = 50000) -> Splits:
    """Training crops and scales at random and mirrors half; evaluation takes the centre of the image.

    validation: how many of the training images are held out, stratified, to select on; the images of `val/` are the
    test set. Either folder may be absent as long as nothing is asked of its splits.
    """
    check_whole_number("imagenet: validation", validation, 1)
    classes = _classes_of(root)
    normalise = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    centre = v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIZE), *normalise])
    augment = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), *normalise])
    train = ClassFolders(root / "train", classes, seed, validation)
    held_out, kept = slice(validation), slice(validation, None)
    return Splits(
        train=FolderImages(train, kept, augment, seed),
        val=FolderImages(train, held_out, centre),
        test=FolderImages(ClassFolders(root / "val", classes), slice(None), centre),
        calibration=FolderImages(train, kept, centre),
        classes=classes,
        input_size=(3, SIZE, SIZE),
        normalisation=(MEAN, STD),
    )
