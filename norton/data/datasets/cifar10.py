"""`cifar10`: CIFAR-10 by the published protocol, from torchvision's on-disk format."""

from pathlib import Path

import torch
import torchvision
from torch import Tensor

from norton.common.errors import InputError
from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.splits import DATASETS, Splits, stratified_order

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def read(root: Path, train: bool, download: bool = False) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (N, 3, 32, 32) uint8, labels (N,) int64 and class names of the training or test files.

    The files are pickles: torchvision reads them only if their MD5 sums are the published ones, so do not go round it.
    """
    try:
        source = torchvision.datasets.CIFAR10(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        folder = (root / torchvision.datasets.CIFAR10.base_folder).absolute()
        found = "it is there, but a file is missing or differs from the published one" if folder.is_dir() else "absent"
        raise InputError(
            f"cifar10: looked for the folder {folder}: {found} ({error}); unpack {torchvision.datasets.CIFAR10.url} "
            f"into {root.absolute()}, set root to the folder that has it, or set download=true to fetch it"
        ) from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    return images, torch.tensor(source.targets), tuple(source.classes)


@DATASETS.register("cifar10")
def cifar10(root: Path, seed: int, validation: int = 5000, download: bool = False) -> Splits:
    """Training crops at random from 4 pixels of padding and mirrors half of the images.

    validation: how many of the 50,000 training images are held out, stratified, to select on; the other 10,000 images
    are the test set. download: fetch what is missing.
    """
    images, labels, classes = read(root, True, download)
    test_images, test_labels, _ = read(root, False, download)
    if not 1 <= validation < len(images):
        raise InputError(f"cifar10: validation {validation} must be from 1 to {len(images) - 1} training images")
    held_out, kept = stratified_order(labels, seed).split([validation, len(images) - validation])

    def part(images: Tensor, labels: Tensor, augment: ShiftAndFlip | None = None) -> ImageTensors:
        return ImageTensors(images, labels, mean=MEAN, std=STD, augment=augment, seed=seed)

    train_images, train_labels = images[kept], labels[kept]
    return Splits(
        train=part(train_images, train_labels, ShiftAndFlip(4, flip=True)),
        val=part(images[held_out], labels[held_out]),
        test=part(test_images, test_labels),
        calibration=part(train_images, train_labels),
        classes=classes,
        input_size=(3, 32, 32),
    )
