"""How calibration images are used, and which images can be."""

import inspect
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from norton.calibration.batches import Images, batches_of
from norton.calibration.precision import is_coarse
from norton.common.checks import check_boolean, check_number, check_whole_number
from norton.common.errors import InputError
from norton.graph.input_sizes import dimensions, stated_size
from norton.graph.inputs import Inputs, takes_indices


@dataclass(frozen=True)
class Calibration:
    """How calibration images are used.

    sequential: each layer reads what the layers compressed before it give, and aims at what the network gave before;
    else all of them read and aim at what there was before.  ridge: λ, relative to the mean variance of what a layer
    reads; more where there are fewer patches than numbers in a filter.  sweeps: over body and tail of CP after its
    heads; over all parts of other decompositions.  batch_size: images computed at a time.  memory: bytes that may be
    taken beside the network; None: half of what is free.  Raises InputError for settings that are none.
    """

    sequential: bool = True
    ridge: float = 0.01
    sweeps: int = 2
    batch_size: int = 128
    memory: float | None = None

    def __post_init__(self) -> None:
        check_boolean("sequential", self.sequential)
        check_number("ridge", self.ridge, above=0)
        if self.memory is not None:
            check_number("memory", self.memory, above=0)
        check_whole_number("sweeps", self.sweeps, 0)
        check_whole_number("batch_size", self.batch_size, 1)


_SHAPES = ("(N, C, L)", "(N, C, H, W)", "(N, C, D, H, W)")


def check_images(net: nn.Module, images: Images) -> None:
    """Raise InputError for calibration images that are none, or not of the network's size."""
    if next(net.parameters(), None) is None:
        raise InputError(
            f"{type(net).__name__} has no parameters, so there is nothing to fit; pass the network around it"
        )
    if isinstance(images, Tensor) and not takes_indices(net, images):
        _check_size(net, images)
    for batch in batches_of(images, 128):
        _check_arguments(net, batch)
        for x in batch.tensors:
            if x.is_floating_point():
                _check_precision(net, x)
            if not x.isfinite().all():
                raise InputError("calibration images have infinite or undefined values")


def _check_arguments(net: nn.Module, batch: Inputs) -> None:
    try:
        inspect.signature(net.forward).bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        raise InputError(
            f"calibration images: {type(net).__name__} does not take a batch of them ({error}); give a list of "
            "batches, each what the network takes, images=[(image, mask), ...] where it takes two inputs"
        ) from None


def _check_size(net: nn.Module, images: Tensor) -> None:
    dims = dimensions(net)
    if images.ndim != 2 + dims or not len(images):
        raise InputError(
            f"calibration images of shape {tuple(images.shape)}; expected {_SHAPES[dims - 1]}, at least one, a few "
            "hundred better"
        )
    size = stated_size(net)
    if size is not None and tuple(images.shape[1:]) != size:
        has, takes = ("×".join(map(str, shape)) for shape in (images.shape[1:], size))
        raise InputError(f"calibration images of {has}; the network takes {takes}: resize them as for evaluation")
    _check_precision(net, images)


def _check_precision(net: nn.Module, images: Tensor) -> None:
    dtype = next(net.parameters()).dtype
    allowed = (dtype, torch.float32) if is_coarse(dtype) else (dtype,)  # in which such a network is fitted
    if images.dtype not in allowed:
        raise InputError(f"calibration images are {images.dtype}, the network {dtype}; give both the same with .to()")
