"""The contract every dataset keeps: a function (root, seed, **options) -> Splits, registered in DATASETS."""

import inspect
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.data.normalising import Normalisation

DATASETS = Registry("dataset")
DEFAULT_ROOT = Path("data")
OWN = "own"  # what a test set is part of that is not drawn
TASKS = ("classification", "segmentation")


@dataclass(frozen=True)
class Splits:
    """A dataset's three disjoint parts, each giving (image, label): a float tensor (C, H, W) and an integer.

    task: one of TASKS; for segmentation the label is a mask, an int64 tensor (H, W) of class numbers, in which `ignore`
    marks pixels that do not count; None where all do.

    Transforms are inside: `train` augments, `val` and `test` do not. `calibration` is the same images as `train` in
    the same order, transformed as for evaluation. Any map-style torch Dataset will do; one that augments by
    (seed, epoch, index) has `set_epoch`.  normalisation: mean and standard deviation of each channel, already applied;
    None where nothing says them.  test_is_drawn: the seed decides which images `test` has.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    calibration: Dataset
    classes: tuple[str, ...]
    input_size: tuple[int, int, int]
    normalisation: Normalisation | None = None
    task: str = "classification"
    ignore: int | None = None
    test_is_drawn: bool = False

    @property
    def num_classes(self) -> int:
        return len(self.classes)


def load_data(name: str, *, root: str | Path | None = None, seed: int = 0, **options: Any) -> Splits:
    """The dataset `name`, looked for under `root` (`data/` if None) and split by `seed`.

    A name with a slash, `torchvision/cifar100`, is one of a library's: the name that is registered, and its option
    `dataset`.

    Raises InputError for an unknown name or option, and where files are missing.
    """
    name, slash, dataset = name.partition("/")
    if slash:
        options["dataset"] = dataset
    make = DATASETS[name]
    known = [key for key in inspect.signature(make).parameters if key not in ("root", "seed")]
    if unknown := sorted(set(options) - set(known)):
        allowed = f"it has {', '.join(known)}" if known else "it has none"
        raise InputError(f"dataset {name!r} has no option {', '.join(unknown)}; {allowed}")
    if seed < 0:
        raise InputError(f"data seed {seed} is negative; use 0 or more")
    return make(root=Path(root) if root is not None else DEFAULT_ROOT, seed=seed, **options)


def test_of(splits: Splits) -> str:
    """What the test images are part of: "own", or of the images that the seed draws them from, how many and a checksum.

    The checksum is of labels and file names, so of the same images it is the same wherever they lie.
    """
    if not splits.test_is_drawn:
        return OWN
    part = getattr(splits.test, "part", None)
    if part is None:  # of a dataset that only tells how many there are
        return f"{len(getattr(splits.test, 'dataset', splits.test))} images"
    source = part.store.source
    found = zlib.crc32(source.labels.numpy().tobytes())
    for name in getattr(source, "names", ()):
        found = zlib.crc32(name + b"\0", found)
    return f"{len(source.labels)} images ({found:08x})"


def generator(*key: int) -> torch.Generator:
    """A random generator that depends on the non-negative integers of `key` alone, e.g. (seed, epoch)."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """A seeded order of the samples in which every prefix has the class proportions of the whole, to within one.

    labels: (N,) int64.  Returns (N,) indices. Cutting it in pieces gives disjoint stratified splits.
    """
    shuffled = torch.randperm(len(labels), generator=generator(seed))
    counts = labels.unique(return_counts=True)[1]
    within = torch.cat([torch.arange(count, dtype=torch.float64) for count in counts.tolist()])
    position = torch.empty(len(labels), dtype=torch.float64)
    position[labels[shuffled].argsort(stable=True)] = (within + 0.5) / counts.repeat_interleave(counts)
    return shuffled[position.argsort(stable=True)]
