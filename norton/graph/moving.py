"""Operations that only move numbers: run on the ids of channels, they show where the channels go."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.graph.channels import Located, LocatedChannels, compressed
from norton.graph.nodes import name_of, value_of
from norton.graph.sizes import plain

_NAMES = """
view reshape reshape_as view_as permute transpose t swapaxes swapdims movedim moveaxis T mT flatten unflatten unsqueeze
squeeze expand repeat tile repeat_interleave flip chunk split tensor_split unsafe_chunk unsafe_split split_with_sizes
unbind narrow select getitem cat concat concatenate stack hstack vstack pixel_shuffle pixel_unshuffle channel_shuffle
native_channel_shuffle broadcast_to
"""
MOVES = frozenset(_NAMES.split())
# What runs on ids, which have no layout, in the place of some.
_OTHER_NAMES = {"getitem": "__getitem__", "concat": "cat", "concatenate": "cat", "view": "reshape"}
MOVING_LAYERS = (nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle)


def moved(node: fx.Node, ids_of: Callable[[fx.Node], Tensor | None], layer: nn.Module | None) -> Any:
    """What a node gives where it is given ids, of the whole size of its tensors, in their place.

    layer: that the node calls, if it does.  ids_of: None for tensors without channels, which get an id of their own.
    Of an assignment, the part that is assigned to.
    """

    def given(arg: fx.Node) -> Any:
        value = value_of(arg)
        if not isinstance(value, Tensor):
            return value
        found = ids_of(arg)
        return (torch.full((1,) * value.dim(), -1) if found is None else found).expand(value.shape)

    args, kwargs = (fx.node.map_arg(part, given) for part in (node.args, node.kwargs))
    args, kwargs = (fx.node.map_aggregate(part, plain) for part in (args, kwargs))
    if layer is not None:
        return layer(*args, **kwargs)
    if name_of(node) == "setitem":
        return args[0][args[1]]
    if name_of(node) == "view" and "size" in kwargs:
        kwargs = {"shape": kwargs["size"]}
    name = _OTHER_NAMES.get(name_of(node), name_of(node))
    if name in ("T", "mT"):
        return getattr(args[0], name)
    function = getattr(torch.Tensor, name, None) or getattr(torch, name, None) or getattr(nn.functional, name)
    return function(*args, **kwargs)


def as_located(found: Any) -> Located:
    """The channels in what a node gives."""
    if isinstance(found, Tensor):
        ids = compressed(found)
        return None if bool((ids < 0).all()) else LocatedChannels(ids)
    return [as_located(part) for part in found]
