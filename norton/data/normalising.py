"""How pixels, from 0 to 1, are normalised: by the mean and standard deviation of each channel."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from norton.common.errors import InputError

Statistic: TypeAlias = str | float | Sequence[float] | None  # as a user gives it
Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, standard deviation) of each channel
NAMED: dict[str, Normalisation] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_ALLOWED = f"a number per channel, one number for all, auto (of the training images), {', '.join(NAMED)}"


def normalisation(
    data: str, mean: Statistic, std: Statistic, published: Normalisation, images: Callable[[], Tensor]
) -> Normalisation:
    """Mean and standard deviation of each channel, as asked for.

    What is None is what the other one names, or else the published one.
    images: gives the training images (N, C, H, W) uint8, of which auto computes both.  Raises InputError for statistics
    of another length, not finite, a mean above 1, or a standard deviation that is not positive.
    """
    mean = std if mean is None and isinstance(std, str) else mean
    std = mean if std is None and isinstance(mean, str) else std
    channels, computed = len(published[0]), None
    found = []
    for place, (name, asked) in enumerate((("mean", mean), ("std", std))):
        if asked == "auto":
            computed = computed or statistics(images())
            found.append(computed[place])
        elif asked is None:
            found.append(published[place])
        else:
            named = NAMED[asked][place] if isinstance(asked, str) and asked in NAMED else asked
            found.append(_read(f"data {data}: {name}", named, channels))
    if max(found[0]) > 1:
        raise InputError(f"data {data}: mean {list(found[0])} is of pixels up to 255; divide it, and std, by 255")
    if min(found[1]) <= 0:
        raise InputError(f"data {data}: std {list(found[1])} must be above 0 in every channel")
    return found[0], found[1]


def normalised(images: Tensor, how: Normalisation) -> Tensor:
    """Images (..., C, H, W), uint8 or from 0 to 1, with each channel's mean taken off and its deviation divided by."""
    mean, std = (torch.tensor(part).view(-1, 1, 1) for part in how)
    whole = 1 if images.is_floating_point() else 255
    return (images.float() / whole - mean) / std


def statistics(images: Tensor) -> Normalisation:
    """Mean and standard deviation of each channel of images (N, C, H, W) uint8, over all pixels, as numbers up to 1."""
    values = torch.arange(256, dtype=torch.float64) / 255
    found = []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        mean = (counts @ values / counts.sum()).item()
        found.append((mean, (counts @ (values - mean) ** 2 / counts.sum()).sqrt().item()))
    mean, std = zip(*found, strict=True)
    return mean, std


def _read(name: str, asked: Statistic, channels: int) -> tuple[float, ...]:
    if isinstance(asked, str):
        raise InputError(f"{name} {asked!r} is unknown; give {_ALLOWED}")
    numbers: list[Any] = [asked] * channels if isinstance(asked, int | float) else [*(asked or ())]
    wrong = any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < float("inf") for n in numbers)
    if wrong or len(numbers) != channels:
        raise InputError(f"{name} {asked} is not {channels} numbers; give {_ALLOWED}")
    return tuple(map(float, numbers))
