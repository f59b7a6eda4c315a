"""Calibration images as the batches that a network is called with, whatever it takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from norton.common.errors import InputError, first_line
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
        what = f"of shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"as {type(images).__name__}"
        raise InputError(
            f"calibration images {what}; expected (N, C, H, W), at least one, a few hundred better; or a list "
            "of batches, each what the network takes: a tensor, a tuple of several or a dict of arguments by name"
        )
    if any(x.is_meta for batch in batches for x in batch.tensors):
        raise InputError("calibration images are on the meta device, without values; give real ones")
    if any(x.isnan().any() for batch in batches for x in batch.tensors):
        raise InputError("calibration images have infinite or undefined values")
    if not count_of(batches):
        raise InputError("calibration images are batches of none; give at least one image, a few hundred better")
    return batches if device is None else [batch.to(device) for batch in batches]


@contextmanager
def taken_by(net: nn.Module, batch: Inputs) -> Iterator[None]:
    """Raise InputError for whatever a network's own code raises of a batch."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AssertionError) as error:
        said = f"{type(net).__name__} does not take calibration images of {batch.shown()}: {first_line(error)}"
        raise InputError(said) from None


def count_of(batches: Sequence[Inputs]) -> int:
    """How many samples are in batches."""
    return sum(batch.count for batch in batches)
