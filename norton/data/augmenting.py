"""Augmentation by name: torchvision's transforms, or the user's own function, drawn by (seed, epoch, index)."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torchvision.transforms import v2

from norton.common.errors import InputError
from norton.data.images import ShiftAndFlip
from norton.data.preparing import Preparation
from norton.data.splits import generator

Transform: TypeAlias = Callable[[Tensor], Tensor]  # of an image (C, H, W) uint8
DEFAULT = ("crop", "flip")


def _crop(prepare: Preparation) -> Transform:
    size = (prepare.height, prepare.width)
    return v2.RandomCrop(size, padding=_padding(prepare) if prepare.box == size else None)


def _padding(prepare: Preparation) -> list[int]:
    """Black pixels around a small image, left and right, above and below: 4 for 32, as published for CIFAR-10."""
    return [prepare.width // 8, prepare.height // 8]


AUGMENTATIONS: dict[str, Callable[[Preparation], Transform]] = {
    "crop": _crop,
    "resizedcrop": lambda prepare: v2.RandomResizedCrop((prepare.height, prepare.width), antialias=True),
    "flip": lambda _: v2.RandomHorizontalFlip(),
    "rotate": lambda _: v2.RandomRotation(15, v2.InterpolationMode.BILINEAR),
    "colorjitter": lambda _: v2.ColorJitter(0.4, 0.4, 0.4),
    "erase": lambda _: v2.RandomErasing(),
    "autoaugment": lambda _: v2.AutoAugment(),
    "randaugment": lambda _: v2.RandAugment(),
    "trivialaugment": lambda _: v2.TrivialAugmentWide(),
    "augmix": lambda _: v2.AugMix(),
}


class Augmentation:
    """One or several augmentations, one after the other, of images (C, H, W) uint8 as `Preparation` gives them.

    names: of AUGMENTATIONS; `none`; or the dotted path of a function that takes such an image and returns one, uint8 or
    from 0 to 1, or of a class that makes one without arguments.  Raises InputError for others.
    """

    def __init__(self, data: str, names: str | Sequence[str] | None, prepare: Preparation):
        self.data = data
        self.prepare = prepare
        self.names = names_in(names)
        self.steps = [_step(data, name, prepare) for name in self.names]

    @property
    def together(self) -> ShiftAndFlip | None:
        """The same for a batch at a time, which is much faster, for crop and flip of small images; else None."""
        prepare = self.prepare
        small = prepare.box == (prepare.height, prepare.width) and prepare.height == prepare.width
        if self.steps and small and tuple(self.names) in (("crop",), ("flip",), ("crop", "flip")):
            return ShiftAndFlip(_padding(prepare)[0] if "crop" in self.names else 0, flip="flip" in self.names)
        return None

    def __call__(self, image: Tensor, *key: int) -> Tensor:
        """An image augmented as the integers of `key` say, and torch's generator is left as it was: (C, height, width).

        Raises InputError where a function of the user's own returns something else.
        """
        with drawn_by(*key):
            for name, step in zip(self.names, self.steps, strict=True):
                image = self._checked(name, step(image))
        return self.prepare.middle(image)

    def _checked(self, name: str, image: Any) -> Tensor:
        least = (self.prepare.channels, self.prepare.height, self.prepare.width)
        if not isinstance(image, Tensor) or image.dim() != 3:
            found = f"a {type(image).__name__}" if not isinstance(image, Tensor) else f"{image.dim()} dimensions"
        elif image.shape[0] != least[0] or image.shape[1] < least[1] or image.shape[2] < least[2]:
            found = f"an image of {tuple(image.shape)}"
        elif not (image.dtype == torch.uint8 or image.is_floating_point()):
            found = f"pixels of {image.dtype}"
        else:
            return image
        raise InputError(
            f"data {self.data}: augment {name} gives {found}; it should give an image of (channels, height, width), at "
            f"least {least}, of uint8 or from 0 to 1"
        )


def names_in(names: str | Sequence[str] | None) -> list[str]:
    """The names of augmentations that somebody gives as one or as several, without `none`."""
    several = names if isinstance(names, Sequence) and not isinstance(names, str) else [names]
    return [str(name) for name in several if name not in (None, "none")]


@contextmanager
def drawn_by(*key: int) -> Iterator[None]:
    """What torchvision draws depends on the integers of `key` alone, and torch's global generator is left as it was."""
    # `manual_seed` would reach the generators of the accelerators as well.
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator(*key).get_state())
        yield


def _step(data: str, name: str, prepare: Preparation) -> Transform:
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name](prepare)
    if "." not in name:
        raise InputError(
            f"data {data}: unknown augment {name!r}; choose among none, {', '.join(AUGMENTATIONS)}, or give the path "
            "of a function of your own, my.module.function"
        )
    found: Any = named(name, f"data {data}: augment")
    if not isinstance(found, type):
        return found
    try:
        return found()
    except TypeError as error:
        raise InputError(f"data {data}: augment {name} cannot be made without arguments ({error}); wrap it") from None


def named(path: str, setting: str) -> Callable:
    """The function or class of a dotted path, whose module is imported.

    Raises InputError, which begins with `setting`, where the path leads to none.
    """
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise InputError(f"{setting} {path}: cannot import {module or 'it'} ({error}); is it on PYTHONPATH?") from None
    if not callable(found):
        raise InputError(f"{setting} {path}: {module} has nothing callable of the name {name!r}")
    return found
