"""Operations that move numbers: reshapes, parts, concatenations, shuffles.

Where channels go shows when the operation is run on their ids (`norton.graph.moving`).  What is left to say is which
of its sizes follow when channels are cut: then only such channels can go together that the tensor stays a block.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from norton.graph.channels import ChannelTracer, Located, LocatedChannels, compressed
from norton.graph.execution import LINE
from norton.graph.moving import MOVES, MOVING_LAYERS, as_located, moved
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.counts import tie_counts
from norton.graph.rules.indexing import index_follows, index_of_channels, taken_by
from norton.graph.rules.parts import PARTS, TAKING, parts_follow, tie_parts
from norton.graph.rules.table import rule

_SIZED = ("view", "reshape", "expand", "broadcast_to", "unflatten")
_SHUFFLES = ("channelshuffle", "channel_shuffle", "native_channel_shuffle")
_JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack")


@rule(" ".join((*MOVES, "index_select")), layers=MOVING_LAYERS, joins=True, gives_parts=True)
def move(tracer: ChannelTracer, node: fx.Node) -> Located:
    """Channels at their new places."""
    first, name = first_argument(node), operation(tracer, node)
    if name == "getitem" and isinstance(tracer.located.get(first), list):
        parts: Any = tracer.located[first]
        return parts[node.args[1]]
    given = tracer.arguments(node)
    if not given:
        return None
    if any(x.shifted for x in given):
        return tracer.unknown(node)
    if name == "squeeze" and len(node.args) + len(node.kwargs) < 2:
        return tracer.unknown(node, "squeeze without a dimension also removes a channel axis of width 1")
    if (index := index_of_channels(tracer, node, given[0])) is not None:
        return taken_by(tracer, node, given[0], index)
    if name == "index_select":
        along = argument(node, 1, "dim") % value_of(node).dim()
        by_position = along in given[0].dims
        return tracer.unknown(node, "it takes some of the channels by their position") if by_position else given[0]
    follows = index_follows if name == "getitem" else parts_follow if name in (*PARTS, *TAKING) else None
    if follows is not None and not follows(tracer, node, given[0]):
        return None
    layer = tracer.layer(node) if node.op == "call_module" else None
    found = as_located(moved(node, lambda arg: _ids(tracer, node, arg), layer))
    if name in PARTS:
        tie_parts(tracer, node, found)
    if name in _SHUFFLES:
        _tie_groups(tracer, node, given[0])
    return _settled(tracer, node, found)


def operation(tracer: ChannelTracer, node: fx.Node) -> str:
    """The name of what a node does; of a layer, that of the function with its name."""
    return type(tracer.layer(node)).__name__.lower() if node.op == "call_module" else name_of(node)


def _ids(tracer: ChannelTracer, node: fx.Node, arg: fx.Node) -> Tensor | None:
    """The ids of a tensor; in a concatenation, parts in which none are known count as inputs, which nobody prunes."""
    if (x := tracer.at(arg)) is not None:
        return x.ids
    if node.op == "call_module" or name_of(node) not in _JOINS:
        return None
    value = value_of(arg)
    dim = argument(node, 1, "dim", argument(node, 1, "axis", 0))
    size = [1] * value.dim()
    size[dim % value.dim()] = value.shape[dim % value.dim()]
    return torch.from_numpy(tracer.wiring.input(math.prod(size))).view(size)


def _tie_groups(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> None:
    """A shuffle has a number of groups of its own, of which each loses the same channels."""
    groups = tracer.layer(node).groups if node.op == "call_module" else argument(node, 1, "groups")
    channels = x.ids.flatten().numpy()
    tracer.wiring.tie_alike(channels, int(groups))


def _settled(tracer: ChannelTracer, node: fx.Node, found: Located) -> Located:
    """Channels that make a difference along one dimension at most: what would leave holes in a block goes together."""
    if isinstance(found, list):
        return [_settled(tracer, node, part) for part in found]
    if found is None:
        return None
    sizes = _sizes(tracer, node) if operation(tracer, node) in _SIZED else {}
    follows = {dim: _follows(sizes.get(dim, -1)) for dim in found.dims}
    if len(found.dims) > 1 or not all(follows.values()):
        found = LocatedChannels(compressed(_representatives(tracer, found.ids)))
    dims = [dim for dim in found.dims if follows[dim]]
    if not found.dims:
        return found
    if not dims:
        asked = ", ".join(str(sizes.get(dim)) for dim in found.dims)
        return tracer.unknown(node, f"it reshapes channels to {asked}, which does not follow them")
    dim = _shrinking(tracer, node, dims, sizes)
    ids = found.ids
    _tie_divided(tracer, sizes, dim, ids)
    for other in found.dims:
        if other != dim:
            first = ids.narrow(other, 0, 1)
            tracer.wiring.add(first.expand_as(ids).flatten().numpy(), ids.flatten().numpy())
            ids = first
    size = sizes.get(dim, -1)
    if isinstance(size, OwnNumber):
        tracer.declare(node, found, tracer.wiring.size, size.names[0], ids.flatten().numpy())
    elif isinstance(size, fx.Node) and name_of(size) in ("size", "getitem"):
        tie_counts(tracer, tracer.counts.get(size), ids.flatten().numpy())
    return LocatedChannels(ids)


def _tie_divided(tracer: ChannelTracer, sizes: dict[int, Any], dim: int, ids: Tensor) -> None:
    """A width divided by a number of heads, `C // self.num_heads`: what it counts goes with the heads."""
    heads = sizes.get(dim)
    for other, size in sizes.items():
        if isinstance(heads, OwnNumber) and isinstance(size, fx.Node) and name_of(size) == "floordiv":
            width, by = size.args
            counted = tracer.counts.get(width) if isinstance(width, fx.Node) and by is heads else None
            if counted is not None and len(counted) == ids.shape[dim] * ids.shape[other]:
                own = ids.movedim((dim, other), (-2, -1)).flatten(0, -3)[0]
                tie_counts(tracer, counted, own.flatten().numpy())


def _representatives(tracer: ChannelTracer, ids: Tensor) -> Tensor:
    """For each channel the first one that it can only go together with."""
    return torch.from_numpy(tracer.wiring.representatives(ids.flatten().numpy())).view(ids.shape)


def _follows(size: Any) -> bool:
    return size == -1 or isinstance(size, fx.Node) or (isinstance(size, OwnNumber) and bool(size.names))


def _shrinking(tracer: ChannelTracer, node: fx.Node, dims: list[int], sizes: dict[int, Any]) -> int:
    """The dimension that gets shorter when channels go.

    Heads go as wholes, so their number does, where features come last, as in attention.  Elsewhere, as in a shuffle of
    channels, the size that is computed of theirs does, and the same number goes from each group.
    """
    if node.op == "call_method" and name_of(node) in _JOINS:
        joined = argument(node, 1, "dim", argument(node, 1, "axis", 0)) % value_of(node).dim()
        return next((dim for dim in dims if dim != joined), dims[0])
    own = [dim for dim in dims if isinstance(sizes.get(dim), OwnNumber)]
    others = [dim for dim in dims if dim not in own]
    if not own or len(dims) == 1:
        return dims[0]
    if not others:  # either may follow
        others = own[-1:]
    line = node.meta.get(LINE)
    tracer.wiring.doubtful[line] = None
    features_last = value_of(node).dim() - 1 in dims
    return own[0] if features_last != (line in tracer.wiring.other_way) else others[0]


def _sizes(tracer: ChannelTracer, node: fx.Node) -> dict[int, Any]:
    """Dimension → the size that a reshape asks for."""
    if operation(tracer, node) == "unflatten":
        dim, sizes = argument(node, 1, "dim"), argument(node, 2, "sizes")
        if node.op == "call_module":
            layer: Any = tracer.layer(node)
            names = [(f"{node.target}.unflattened_size[{place}]",) for place in range(len(layer.unflattened_size))]
            dim, sizes = layer.dim, [OwnNumber(*one) for one in zip(layer.unflattened_size, names, strict=True)]
        return {dim % value_of(first_argument(node)).dim() + place: size for place, size in enumerate(sizes)}
    asked = sizes_asked(node)
    return dict(enumerate(asked)) if len(asked) == value_of(node).dim() else {}


def sizes_asked(node: fx.Node) -> Sequence[Any]:
    """The sizes that follow the first argument, one by one or in a list."""
    asked: Sequence[Any] = [*node.args[1:], *([] if len(node.args) > 1 else node.kwargs.values())]
    return asked[0] if len(asked) == 1 and isinstance(asked[0], list | tuple) else asked
