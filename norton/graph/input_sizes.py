"""The size of the images that a network takes: as somebody says, as the network states, else some usual ones to try."""

from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import nn

from norton.graph.layers import is_decomposed

USUAL_SIDES = (224, 299, 32, 64, 28)  # of an image, tried in this order where nobody says which size a network takes


def candidate_sizes(net: nn.Module, size: Sequence[int] | None = None) -> list[tuple[int, ...]]:
    """The input sizes (channels, height, width) to try: one, or those that the network states or that are usual."""
    if size is not None:
        return [tuple(size)]
    stated = stated_size(net)
    if stated and len(stated) == 3:
        return [stated]
    convolutions = (layer for layer in nn.Module.modules(net) if isinstance(layer, nn.Conv2d) or is_decomposed(layer))
    channels = next((n for layer in convolutions if (n := getattr(layer, "in_channels", None)) is not None), 3)
    usual: list[tuple[int, ...]] = [(channels, side, side) for side in USUAL_SIDES]
    return [stated, *usual] if stated else usual  # which may be that of other data, or two sides


def stated_size(net: nn.Module) -> tuple[int, ...] | None:
    """A network's `input_size`, unless it means something else by that name, such as the side of an image."""
    size = getattr(net, "input_size", None)
    return tuple(size) if is_size(size) else None


def is_size(size: Any) -> TypeGuard[Sequence[int]]:
    """Whether something is the size of an input without its batch: whole numbers above 0."""
    return isinstance(size, Sequence) and len(size) > 0 and all(type(n) is int and n > 0 for n in size)
