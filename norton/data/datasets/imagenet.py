"""`imagenet`: ImageNet by the published protocol, from the user's folders `train/<class>/` and `val/<class>/`.

Nothing is listed before it is used, so who evaluates needs `val/` alone and does not wait for the 1.28 million files
of `train/`.
"""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets.folder import pil_loader
from torchvision.transforms import v2

from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.data.augmenting import drawn_by
from norton.data.folders import ClassFolders, class_names, some
from norton.data.normalising import NAMED, Statistic, normalisation
from norton.data.pictures import UNREADABLE
from norton.data.splits import DATASETS, Splits, stratified_order

SIZE, RESIZED = 224, 256
LAYOUT = "one folder per class with its images inside, e.g. n01440764/ILSVRC2012_val_00000293.JPEG"
ADVICE = ": train/ is for training, validation and calibration, val/ for the test"


class TrainingFolders(ClassFolders):
    """The images of `train/` in a stratified order, so that each piece of it has the class proportions of the whole.

    cut: must leave at least one image on either side.
    """

    def __init__(self, path: Path, classes: tuple[str, ...], seed: int, cut: int):
        super().__init__(path, classes, "imagenet", "val", LAYOUT)
        self.seed = seed
        self.cut = cut

    def listed(self) -> tuple[np.ndarray, Tensor]:
        paths, labels = super().listed()
        if not 1 <= self.cut < len(labels):
            raise InputError(
                f"imagenet: validation {self.cut} must be from 1 to {len(labels) - 1}, as {self.path.absolute()} has "
                f"{len(labels)} images to train on and to hold out from; set validation to fewer"
            )
        order = stratified_order(labels, self.seed)
        return paths[order.numpy()], labels[order]


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
        image = read_image(self.folders.file(self.paths[index]))
        # Contiguous, or a batch would be laid out, and so convolved, otherwise with workers than without.
        return self._transformed(image, index).contiguous(), int(self.labels[index])

    def _transformed(self, image: Image.Image, index: int) -> Tensor:
        if self.seed is None:
            return self.transform(image)
        with drawn_by(self.seed, self.epoch, index):
            return self.transform(image)


def read_image(path: Path) -> Image.Image:
    """The picture in RGB.  Raises InputError where it cannot be read."""
    try:
        return pil_loader(path)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"imagenet: cannot read the image {path.absolute()} ({type(error).__name__}: {reason}); it should be a "
            "whole image file: unpack it again"
        ) from error


def _classes_of(root: Path) -> tuple[str, ...]:
    """The class names, from `val/`, or `train/` where that is absent."""
    for name in ("val", "train"):
        if (root / name).is_dir():
            return class_names(root / name, "imagenet", LAYOUT, ADVICE)
    looked = f"imagenet: looked for the folders train and val in {root.absolute()}"
    found = "no such folder"
    if root.is_dir():
        with os.scandir(root) as entries:
            found = f"found {some(sorted((entry.name, entry.is_dir()) for entry in entries))}"
    elif root.exists():
        found = "not a folder"
    raise InputError(f"{looked}: {found}; each must hold {LAYOUT}; set root to the folder that has them")


def _no_sample() -> Tensor:
    raise InputError("data imagenet: auto would read all training images; give mean and std in numbers, or by name")


@DATASETS.register("imagenet")
def imagenet(root: Path, seed: int, validation: int = 50000, mean: Statistic = None, std: Statistic = None) -> Splits:
    """Training crops and scales at random and mirrors half; evaluation takes the centre of the image.

    validation: how many of the training images are held out, stratified, to select on; the images of `val/` are the
    test set. Either folder may be absent as long as nothing is asked of its splits.  mean, std: see
    `norton.data.normalising`; by default ImageNet's.
    """
    check_whole_number("imagenet: validation", validation, 1)
    scale = normalisation("imagenet", mean, std, NAMED["imagenet"], _no_sample)
    classes = _classes_of(root)
    normalise = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*scale)]
    centre = v2.Compose([v2.Resize(RESIZED), v2.CenterCrop(SIZE), *normalise])
    augment = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), *normalise])
    train = TrainingFolders(root / "train", classes, seed, validation)
    held_out, kept = slice(validation), slice(validation, None)
    return Splits(
        train=FolderImages(train, kept, augment, seed),
        val=FolderImages(train, held_out, centre),
        test=FolderImages(ClassFolders(root / "val", classes, "imagenet", "train", LAYOUT), slice(None), centre),
        calibration=FolderImages(train, kept, centre),
        classes=classes,
        input_size=(3, SIZE, SIZE),
        normalisation=scale,
    )
