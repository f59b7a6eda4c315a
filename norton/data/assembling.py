"""Splits made of pictures, wherever they come from: drawn, prepared, kept in memory, augmented, normalised."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import psutil
import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from norton.common.checks import check_whole_number
from norton.common.errors import InputError, warn
from norton.data.augmenting import DEFAULT, Augmentation
from norton.data.normalising import NAMED, Normalisation, Statistic, normalisation, normalised
from norton.data.preparing import preparation
from norton.data.splits import Splits, generator, stratified_order

SHARES = {"val": 0.1, "test": 0.2}  # of the training images, where such a split has to be drawn
SAMPLE = 500_000_000  # bytes of images whose mean and standard deviation stand for all
TOGETHER = 256  # pictures that are read at once
FEW = 2000  # pictures, up to which there is no wait to show
OPTIONS = {"val": "validation", "test": "test"}  # what sets them


class Source(Protocol):
    """Pictures with labels, read one at a time; what it needs to list them, it does at the first use."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def picture(self, number: int) -> Any:
        """One of the pictures, as it is: what its preparation takes."""


class Prepares(Protocol):
    """What makes tensors (channels, *box) uint8 of the pictures of a source."""

    @property
    def channels(self) -> int: ...

    @property
    def box(self) -> tuple[int, int]: ...

    def __call__(self, picture: Any, /) -> Tensor: ...

    def middle(self, images: Tensor) -> Tensor:
        """What is evaluated of them."""


@dataclass(frozen=True)
class Presentation:
    """How pictures become images of a network: the options of every dataset that is made of pictures.

    size: a number, or (height, width).  channels: 3 for colour (the default), 1 for grey.  mean, std: see
    `norton.data.normalising`; by default ImageNet's, and 0.5 for grey.  augment: names, see `norton.data.augmenting`.
    validation, test: how many training images are drawn for a split that is missing, a share below 1 or a number; by
    default 10 and 20 percent.  memory: bytes up to which a split is decoded once and kept; by default a quarter of what
    is free.
    """

    size: int | Sequence[int] | None = None
    channels: int | None = None
    mean: Statistic = None
    std: Statistic = None
    augment: str | Sequence[str] | None = DEFAULT
    validation: float | None = None
    test: float | None = None
    memory: float | None = None


def presented(make: Callable[..., Splits]) -> Callable[..., Splits]:
    """Decorator of a dataset: its parameter `how`, a `Presentation`, is filled from options of the same names."""
    own = [one for one in inspect.signature(make).parameters.values() if one.name != "how"]
    names = [field.name for field in fields(Presentation)]

    @functools.wraps(make)
    def with_options(**options: Any) -> Splits:
        how = Presentation(**{name: options.pop(name) for name in names if name in options})
        return make(how=how, **options)

    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    with_options.__signature__ = inspect.Signature([*own, *more])  # type: ignore[attr-defined]  # for `load_data`
    return with_options


def assemble(data: str, sources: Mapping[str, Source], classes: Sequence[str], seed: int, how: Presentation) -> Splits:
    """The splits of a dataset.

    sources: of `train`, and of `val` and `test` where they are not to be drawn from it.  Raises InputError for options
    that make no sense, and for fewer than two classes.
    """
    if len(classes) < 2:
        raise InputError(f"data {data}: only one class, {classes[0]}; there must be two or more to tell apart")
    if how.size is None:
        raise InputError(f"data {data}: nothing says the size of images; give size, e.g. 224, or [height,width]")
    prepare = preparation(data, how.size, 3 if how.channels is None else how.channels)
    augmentation = Augmentation(data, how.augment, prepare)
    parts = parts_of(data, sources, prepare, seed, how)
    _check_drawn(data, {split: part for split, part in parts.items() if split not in sources}, classes)
    published = NAMED["imagenet"] if prepare.channels == 3 else ((0.5,), (0.5,))
    scale = normalisation(data, how.mean, how.std, published, lambda: sample(parts["train"]))

    def images(split: str, augmentation: Augmentation | None = None) -> Pictures:
        return Pictures(parts[split], scale, augmentation, seed)

    return Splits(
        train=images("train", augmentation),
        val=images("val"),
        test=images("test"),
        calibration=images("train"),
        classes=tuple(classes),
        input_size=(prepare.channels, prepare.height, prepare.width),
        normalisation=scale,
        test_is_drawn="test" not in sources,
    )


def parts_of(
    data: str, sources: Mapping[str, Source], prepare: Prepares, seed: int, how: Presentation
) -> "dict[str, Part]":
    """Split → its pictures; those of a split without a source are drawn from `train`."""
    stores = {split: Store(source, prepare, _memory(data, how)) for split, source in sources.items()}
    drawn = draw(data, sources, seed, how)
    return {
        split: Part(stores.get(split, stores["train"]), drawn.get(split), seed if split == "train" else None)
        for split in ("train", "val", "test")
    }


def _check_drawn(data: str, parts: Mapping[str, "Part"], classes: Sequence[str]) -> None:
    """Warn of classes that have too few images for a split to be drawn."""
    for split, part in parts.items():
        seen = set(part.labels.unique().tolist())
        if missing := [name for label, name in enumerate(classes) if label not in seen]:
            warn(
                f"data {data}: the {len(part.numbers)} {split} images, drawn from the training images, have none of "
                f"{', '.join(missing[:5])}{f' and {len(missing) - 5} more classes' * (len(missing) > 5)}; raise "
                f"data.{OPTIONS[split]}, or give {split}/"
            )


def draw(data: str, sources: Mapping[str, Source], seed: int, how: Presentation) -> dict[str, Tensor]:
    """Split → numbers of its pictures in the training source, of those that are drawn from it; empty where none is.

    The splits are disjoint, stratified, and depend on the seed.
    """
    missing = [split for split in ("val", "test") if split not in sources]
    for split, option in OPTIONS.items():
        if split not in missing and getattr(how, option) is not None:
            raise InputError(
                f"data {data}: has {split} images of its own, so {option} can do nothing; leave it out, or where a "
                f"checkpoint remembers it, give data.{option}=null"
            )
    if not missing:
        return {}
    order = stratified_order(sources["train"].labels, seed)
    counts = [_count(data, len(order), OPTIONS[split], getattr(how, OPTIONS[split]), split) for split in missing]
    left = len(order) - sum(counts)
    if left < 1:
        raise InputError(
            f"data {data}: of {len(order)} training images none is left to train on beside "
            f"{' and '.join(f'{n} {split}' for n, split in zip(counts, missing, strict=True))} images; give more "
            f"images, or lower {' and '.join(OPTIONS[split] for split in missing)}"
        )
    return dict(zip([*missing, "train"], order.split([*counts, left]), strict=True))


def _count(data: str, whole: int, option: str, asked: Any, split: str) -> int:
    if asked is None:
        return max(1, round(SHARES[split] * whole))
    if isinstance(asked, float) and 0 < asked < 1:
        return max(1, round(asked * whole))
    check_whole_number(f"data {data}: {option} (or a share below 1)", asked, 1)
    return asked


def _memory(data: str, how: Presentation) -> float:
    if how.memory is None:
        return psutil.virtual_memory().available / 4
    if isinstance(how.memory, bool) or not isinstance(how.memory, int | float) or not how.memory >= 0:
        raise InputError(f"data {data}: memory {how.memory!r} is no number of bytes, 0 or more")
    return how.memory


def sample(part: "Part") -> Tensor:
    """The training images, or of many the first of their stratified order, for their statistics."""
    count = min(len(part.numbers), max(1, SAMPLE // part.store.bytes_of_one))
    return part.store.prepare.middle(part.store[part.numbers[:count]])


class Store:
    """The prepared pictures of a source, (N, C, *box) uint8: decoded at the first use, and kept where memory allows."""

    def __init__(self, source: Source, prepare: Prepares, memory: float):
        self.source = source
        self.prepare = prepare
        self.memory = memory
        self.bytes_of_one = prepare.channels * prepare.box[0] * prepare.box[1]

    @property
    def keeps(self) -> bool:
        """Whether there is room for all pictures at once."""
        return len(self.source.labels) * self.bytes_of_one <= self.memory

    @cached_property
    def kept(self) -> tuple[Tensor, Tensor]:
        """(N, C, *box) uint8, of which those are filled in that (N,) says."""
        count = len(self.source.labels)
        with torch.inference_mode(False):  # whoever evaluates first does so in it, and nobody could fill them later
            images = torch.empty(count, self.prepare.channels, *self.prepare.box, dtype=torch.uint8)
            return images, torch.zeros(count, dtype=torch.bool)

    def __getitem__(self, numbers: Tensor) -> Tensor:
        """(B, C, *box) uint8."""
        if not self.keeps:
            return torch.stack(self._read(numbers.tolist()))
        images, known = self.kept
        if len(missing := numbers[~known[numbers]].unique()):
            images[missing] = torch.stack(self._read(missing.tolist()))
            known[missing] = True
        return images[numbers]

    def _read(self, numbers: Sequence[int]) -> list[Tensor]:
        if get_worker_info() is not None or len(numbers) == 1:  # each worker is one of many processes
            return [self._one(number) for number in numbers]
        with ThreadPoolExecutor(cores()) as threads:  # Pillow decodes and resizes outside of Python's lock
            return list(threads.map(self._one, numbers))

    def _one(self, number: int) -> Tensor:
        return self.prepare(self.source.picture(number))


class Part:
    """Some pictures of a store, or all of them; by `seed` in a stratified order, else as they are listed."""

    def __init__(self, store: Store, numbers: Tensor | None, seed: int | None):
        self.store = store
        self.chosen = numbers
        self.seed = seed

    @cached_property
    def numbers(self) -> Tensor:
        """(N,) places in the source."""
        if self.chosen is not None:
            return self.chosen
        labels = self.store.source.labels
        return torch.arange(len(labels)) if self.seed is None else stratified_order(labels, self.seed)

    @property
    def labels(self) -> Tensor:
        return self.store.source.labels[self.numbers]


class Pictures(Dataset):
    """A part of the pictures; gives (image, label): a normalised float tensor (C, H, W) and an integer.

    What happens to an image depends on (seed, epoch, index) alone.  The epoch is 0 until `set_epoch`.
    """

    def __init__(self, part: Part, how: Normalisation, augmentation: Augmentation | None = None, seed: int = 0):
        self.part = part
        self.how = how
        self.augmentation = augmentation if augmentation and augmentation.steps else None
        self.together = self.augmentation.together if self.augmentation else None
        self.seed = seed
        self.set_epoch(0)

    @property
    def in_memory(self) -> bool:
        """Whether workers would only copy what is there."""
        return self.part.store.keeps

    @property
    def labels(self) -> Tensor:
        return self.part.labels

    def look(self, described: str) -> None:
        """Read all pictures where memory keeps them: one that cannot be read is found now, and no time is lost."""
        if self.in_memory:
            shown = track(self.part.numbers.split(TOGETHER), described, transient=True, disable=len(self) < FEW)
            with closing(shown) as batches:  # its thread ends here, also where a picture is refused
                for numbers in batches:
                    self.part.store[numbers]

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self._draws: Tensor | None = None

    def __len__(self) -> int:
        return len(self.part.numbers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([range(len(self))[index]])[0]  # IndexError beyond the last

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """A whole batch's samples, computed together; the DataLoader calls this and collates them as any others."""
        numbers = self.part.numbers[torch.as_tensor(indices)]
        images = normalised(self._augmented(self.part.store[numbers], indices), self.how)
        return list(zip(images.unbind(), self.part.store.source.labels[numbers].unbind(), strict=True))

    def _augmented(self, images: Tensor, indices: Sequence[int]) -> Tensor:
        if self.together is not None:
            if self._draws is None:
                self._draws = self.together.draw(len(self), generator(self.seed, self.epoch))
            return self.together(images, self._draws[torch.as_tensor(indices)])
        if self.augmentation is None:
            return self.part.store.prepare.middle(images)
        augment = self.augmentation
        key = [(self.seed, self.epoch, int(index)) for index in indices]
        found = [augment(image, *one) for image, one in zip(images, key, strict=True)]
        return torch.stack([image.float() / 255 if image.dtype == torch.uint8 else image.float() for image in found])


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
