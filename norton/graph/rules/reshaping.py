"""Operations that move dimensions, merge them or take parts of them."""

import math
from typing import Any

from torch import Tensor, fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import first_argument, name_of, value_of
from norton.graph.rules.table import rule


@rule("permute transpose swapaxes")
def permute(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Dimensions in another order."""
    x, dims = tracer.input(node), [*node.args[1:], *node.kwargs.values()]
    if x is None:
        return None
    order = list(range(value_of(first_argument(node)).dim()))
    if name_of(node) == "permute":
        order = [dim % len(order) for dim in _unpacked(dims)]
    else:
        a, b = (dim % len(order) for dim in _unpacked(dims))
        order[a], order[b] = order[b], order[a]
    return LocatedChannels(x.channels, order.index(x.dim))


@rule("flatten unsqueeze squeeze", layers=[nn.Flatten])
def flatten(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Dimensions merged, added or left out."""
    if name_of(node) == "squeeze" and len(node.args) + len(node.kwargs) < 2:
        return tracer.unknown(node, "squeeze without a dimension also removes a channel axis of width 1")
    return _reshaped(tracer, node)


@rule("view reshape", follows_counts=True)
def reshape(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A reshape whose size for the channels follows from the tensor, rather than being a number in the code."""
    x = _reshaped(tracer, node)
    if x is None:
        return None
    return _sized(tracer, node, x)


@rule("expand", follows_counts=True)
def expand(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A tensor repeated along other dimensions, which may be new ones in front."""
    x = tracer.input(node)
    if x is None:
        return None
    return _sized(tracer, node, x._replace(dim=x.dim + value_of(node).dim() - value_of(first_argument(node)).dim()))


def _sized(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> LocatedChannels | None:
    """Channels after an operation that takes the sizes of all dimensions: theirs must follow them."""
    sizes = _unpacked([*node.args[1:], *([] if len(node.args) > 1 else node.kwargs.values())])
    if len(sizes) != value_of(node).dim():
        return tracer.unknown(node)
    size = sizes[x.dim]
    tracer.freeze_counts(node, [other for other in sizes if other is not size and isinstance(other, fx.Node)])
    if size == -1:
        return x
    if not (isinstance(size, fx.Node) and name_of(size) in ("size", "getitem") and tracer.counts.get(size)):
        reason = f"it reshapes channels to {size}, which is written down and does not follow them"
        return tracer.unknown(node, reason)
    return tracer.declare(node, x, tracer.wiring.add, x.channels, tracer.counts[size])


def _reshaped(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Where the channels are after a change of shape that keeps them outermost of what they are merged with."""
    x, before, after = tracer.input(node), value_of(first_argument(node)).shape, value_of(node).shape
    if x is None:
        return None
    inner = math.prod(before[x.dim + 1 :])
    for dim in range(len(after)):
        positions, rest = divmod(after[dim], before[x.dim])
        whole = not rest and positions and not inner % positions
        if whole and math.prod(after[:dim]) == math.prod(before[: x.dim]):
            return LocatedChannels(tracer.wiring.flatten(x.channels, positions), dim)
    return tracer.unknown(node, "it splits channels, or merges them with what stands outside of them")


@rule("getitem", gives_parts=True)
def getitem(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Slices and single ones of rows and columns, and new dimensions."""
    x, asked = tracer.input(node), node.args[1]
    if x is None or not isinstance(value_of(first_argument(node)), Tensor):  # one of several parts, which are alike
        return x
    index: list[Any] = list(asked) if isinstance(asked, tuple) else [asked]
    if not all(part is None or part is ... or type(part) in (int, slice) for part in index):
        return tracer.unknown(node)
    taken = sum(part is not None and part is not ... for part in index)
    place = next((at for at, part in enumerate(index) if part is ...), len(index))
    index[place : place + 1] = [slice(None)] * (value_of(first_argument(node)).dim() - taken)
    own = [at for at, part in enumerate(index) if part is not None][x.dim]  # where the index has the channels
    if not _takes_all(index[own], value_of(first_argument(node)).shape[x.dim]):
        return tracer.unknown(node, "it takes some of the channels by their position")
    return LocatedChannels(x.channels, sum(type(part) is not int for part in index[:own]))


def _takes_all(part: Any, size: int) -> bool:
    """Whether an index takes all channels, and goes on to where some of them are removed."""
    whole = isinstance(part, slice) and part.start in (None, 0) and part.step in (None, 1)
    return whole and (part.stop is None or (type(part.stop) is int and part.stop >= size))


def _unpacked(arguments: list[Any]) -> list[Any]:
    """Sizes or dimensions, given one by one or as one list."""
    if len(arguments) == 1 and isinstance(arguments[0], list | tuple):
        return list(arguments[0])
    return arguments
