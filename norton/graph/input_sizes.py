"""The size of the images that a network takes: as somebody says, as the network states, else some usual ones to try."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import nn
from torch.nn.modules.conv import _ConvNd

# Tried in this order where nobody says which size a network takes: of an image, of a sound or other series, of a clip.
_USUAL: dict[int, tuple[tuple[int, ...], ...]] = {
    2: tuple((side, side) for side in (224, 299, 32, 64, 28)),
    1: ((1024,), (16_000,), (128,)),
    3: ((16, 112, 112), (32, 32, 32)),
}


def candidate_sizes(net: nn.Module, size: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """The input sizes (channels, height, width) to try: one, or those that the network states or that are usual.

    Where convolutions have one or three dimensions, (channels, length) or (channels, depth, height, width).
    """
    if size is not None:
        return [tuple(size)]
    stated, dims = stated_size(net), dimensions(net)
    if stated and len(stated) == 1 + dims:
        return [stated]
    convolutions = (layer for layer in nn.Module.modules(net) if isinstance(layer, _ConvNd))
    channels = next((layer.in_channels for layer in convolutions if len(layer.kernel_size) == dims), 3)
    usual = [(channels, *sizes) for sizes in _USUAL[dims]]
    return [stated, *usual] if stated else usual  # which may be that of other data, or two sides


def dimensions(net: nn.Module) -> int:
    """The spatial dimensions of what a network takes: 2 if it has such a convolution or none, else its first one's."""
    found = [len(layer.kernel_size) for layer in nn.Module.modules(net) if isinstance(layer, _ConvNd)]
    return found[0] if found and 2 not in found else 2


def stated_size(net: nn.Module) -> tuple[int, ...] | None:
    """A network's `input_size`, unless it means something else by that name, such as the side of an image."""
    size = getattr(net, "input_size", None)
    return tuple(size) if is_size(size) else None


def stated_batch(net: nn.Module) -> int | None:
    """How many images a network states to take at once, its `input_batch`; None where it says nothing of that."""
    batch = getattr(net, "input_batch", None)
    return batch if type(batch) is int and batch > 0 else None


def is_size(size: Any) -> TypeGuard[Sequence[int]]:
    """Whether something is the size of an input without its batch: whole numbers above 0."""
    return isinstance(size, Sequence) and len(size) > 0 and all(type(n) is int and n > 0 for n in size)
