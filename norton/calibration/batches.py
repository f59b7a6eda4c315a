"""Calibration images as the batches that a network is called with, whatever it takes."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from norton.common.errors import InputError
from norton.graph.inputs import Example, Inputs, inputs_of

# Images (N, C, H, W); or batches, each of them what one call of the network takes: see `norton.graph.inputs.Example`.
Images: TypeAlias = Tensor | Sequence[Example]


def batches_of(images: Images, size: int, device: torch.device | None = None) -> list[Inputs]:
    """Images as batches of at most `size`, on a device if one is named; batches that are given stay as they are.

    Raises InputError for what is neither.
    """
    if isinstance(images, Tensor):
        batches = [Inputs((batch,)) for batch in images.split(size)]
    elif isinstance(images, list | tuple):
        try:
            batches = [inputs_of(batch) for batch in images]
        except InputError as error:
            raise InputError(f"calibration images: {str(error).replace('example is', 'a batch is')}") from None
    else:
        batches = []
    if not batches:
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"calibration images of shape {what}; expected (N, C, H, W), at least one, a few hundred better; or a list "
            "of batches, each what the network takes: a tensor, a tuple of several or a dict of arguments by name"
        )
    return batches if device is None else [batch.to(device) for batch in batches]


def count_of(batches: Sequence[Inputs]) -> int:
    """How many samples are in batches."""
    return sum(batch.count for batch in batches)
