"""`cifar10`: CIFAR-10 by the published protocol, from either of its official layouts on disk, for Python or binary."""

import hashlib
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor

from norton.common.errors import InputError
from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.normalising import NAMED, Statistic, normalisation
from norton.data.splits import DATASETS, Splits, stratified_order

MEAN, STD = NAMED["cifar10"]
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BINARY = "cifar-10-batches-bin"
# MD5 sums of the official binary files; a row is a label byte, then 1024 red, 1024 green and 1024 blue pixels.
BINARY_FILES = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}


def read(root: Path, train: bool, download: bool = False) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of the training or test files, in whichever layout is there.

    Both layouts hold the same images in the same order.  Their MD5 sums must be the published ones; the files for
    Python are pickles, so do not go round the check.
    """
    python = torchvision.datasets.CIFAR10.base_folder
    if root.name in (BINARY, python):  # the folder itself
        root = root.parent
    if (root / BINARY).is_dir() and not (root / python).is_dir():
        return _read_binary(root / BINARY, train)
    try:
        source = torchvision.datasets.CIFAR10(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        folder = (root / python).absolute()
        found = "it is there, but a file is missing or differs from the published one" if folder.is_dir() else "absent"
        raise InputError(
            f"cifar10: looked for the folder {folder}, or {BINARY} beside it: {found} ({error}); unpack "
            f"{torchvision.datasets.CIFAR10.url} into {root.absolute()}, set root to the folder that has it, or set "
            "download=true to fetch it"
        ) from error
    return torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets)


def _read_binary(folder: Path, train: bool) -> tuple[Tensor, Tensor]:
    rows = []
    for name, published in BINARY_FILES.items():
        if name.startswith("data") != train:
            continue
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise InputError(
                f"cifar10: looked for {(folder / name).absolute()}: {error.strerror or error}; unpack the binary "
                "version of CIFAR-10 there again"
            ) from None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != published:
            raise InputError(
                f"cifar10: {(folder / name).absolute()} differs from the published file (by its MD5 sum); unpack the "
                "binary version of CIFAR-10 there again"
            )
        rows.append(np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32))
    table = torch.from_numpy(np.concatenate(rows))
    return table[:, 1:].reshape(-1, 3, 32, 32), table[:, 0].long()


@DATASETS.register("cifar10")
def cifar10(
    root: Path,
    seed: int,
    validation: int = 5000,
    download: bool = False,
    mean: Statistic = None,
    std: Statistic = None,
) -> Splits:
    """Training crops at random from 4 pixels of padding and mirrors half of the images.

    validation: how many of the 50,000 training images are held out, stratified, to select on; the other 10,000 images
    are the test set. download: fetch what is missing.  mean, std: see `norton.data.normalising`; by default CIFAR-10's.
    """
    images, labels = read(root, True, download)
    test_images, test_labels = read(root, False, download)
    if not 1 <= validation < len(images):
        raise InputError(f"cifar10: validation {validation} must be from 1 to {len(images) - 1} training images")
    held_out, kept = stratified_order(labels, seed).split([validation, len(images) - validation])

    train_images, train_labels = images[kept], labels[kept]
    mean, std = normalisation("cifar10", mean, std, (MEAN, STD), lambda: train_images)

    def part(images: Tensor, labels: Tensor, augment: ShiftAndFlip | None = None) -> ImageTensors:
        return ImageTensors(images, labels, mean=mean, std=std, augment=augment, seed=seed)

    return Splits(
        train=part(train_images, train_labels, ShiftAndFlip(4, flip=True)),
        val=part(images[held_out], labels[held_out]),
        test=part(test_images, test_labels),
        calibration=part(train_images, train_labels),
        classes=CLASSES,
        input_size=(3, 32, 32),
        normalisation=(mean, std),
    )
