"""Parts of channels (`chunk`, `split`, `narrow`): which of their sizes and places follow when channels are cut."""

import math
from typing import Any

import torch
from torch import fx

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, Located, LocatedChannels, located_in
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.counts import is_count, number_of, tie_counts

TAKING = ("unbind", "select", "narrow")  # a part each, or one, by its place
PARTS = ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes")
_NOT_SIZES = ("input", "self", "tensor", "dim", "axis")  # the other arguments, as torch names them


def parts_follow(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> bool:
    """Whether parts along channels can be followed; says to the wiring what their sizes and places ask for."""
    name, dims = name_of(node), value_of(first_argument(node)).dim()
    dim = argument(node, 1 if name in TAKING else 2, "dim", 0) % dims
    if dim not in x.dims:
        return True
    if x.dims == [dim] and name == "narrow":
        _part_follows(tracer, node, x)
        return True
    if x.dims != [dim] or name in (*TAKING, "tensor_split"):
        tracer.unknown(node, "it takes some of the channels by their position")
        return False
    channels = x.ids.flatten().numpy()
    if "chunk" in name:
        if len(channels) % argument(node, 1, "chunks"):
            tracer.unknown(node, "it divides channels into parts of different sizes")
            return False
        return True
    sizes = _section_sizes(node)
    if not isinstance(sizes, list | tuple):
        whole, rest = divmod(len(channels), int(number_of(sizes)))
        if rest and type(sizes) is not int:  # else it would be divided into more parts when fewer go from the last one
            tracer.unknown(node, "it divides channels into parts of different sizes")
            return False
        sizes = [sizes] * whole + ([rest] if rest else [])
    place = 0
    for size in sizes:
        part = channels[place : place + int(number_of(size))]
        follow_count(tracer, node, x, size, part)
        place += len(part)
    if all(isinstance(size, fx.Node) and not is_count(tracer, size, number_of(size)) for size in sizes):
        size = math.gcd(*map(number_of, sizes))  # shares of the number of channels: from each part alike
        tracer.wiring.tie_alike(channels, len(channels) // size)
    return True


def _part_follows(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> None:
    """The start and the length of a part are the numbers of channels in front of it and in it."""
    channels, start, length = x.ids.flatten().numpy(), argument(node, 2, "start"), argument(node, 3, "length")
    first, count = int(number_of(start)), int(number_of(length))
    if first < 0:  # counted from the end
        first += len(channels)
        if isinstance(start, int):
            follow_count(tracer, node, x, -start, channels[first:])
    elif first > 0:
        follow_count(tracer, node, x, start, channels[:first])
    if count:
        follow_count(tracer, node, x, length, channels[first : first + count])


def _section_sizes(node: fx.Node) -> Any:
    """The size or sizes of the parts, or, for `chunk`, how many; each function of torch calls it by another name."""
    named = (value for name, value in node.kwargs.items() if name not in _NOT_SIZES)
    return node.args[1] if len(node.args) > 1 else next(named)


def follow_count(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, size: Any, part: Channels) -> None:
    """A size in the code is the number of these channels."""
    if isinstance(size, OwnNumber) and size.names:
        tracer.declare(node, x, tracer.wiring.size, size.names[0], part)
    elif is_count(tracer, size, len(part)):
        tie_counts(tracer, tracer.counts[size], part)
    elif not isinstance(size, fx.Node):
        reason = f"it takes {size} of the channels, which does not follow them"
        tracer.freeze(LocatedChannels(torch.from_numpy(part)), node, reason)


def tie_parts(tracer: ChannelTracer, node: fx.Node, parts: Located) -> None:
    """Parts of the same size, of a size that follows the channels, lose the same channels."""
    known = located_in(parts)
    sizes = _section_sizes(node)
    if isinstance(sizes, list | tuple) and any(isinstance(size, OwnNumber) for size in sizes):
        return  # each follows a number of its own
    for part in known[1:]:
        if part.ids.shape == known[0].ids.shape and not isinstance(sizes, OwnNumber):
            tracer.wiring.add(known[0].ids.flatten().numpy(), part.ids.flatten().numpy())
