"""Indexing (`x[:, :width]`, `x[:, self.order]`): which channels it takes, and whether the ends of its slices follow."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.counts import is_count, number_of, tie_counts
from norton.graph.rules.parts import follow_count


def index_follows(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> bool:
    """Whether an index takes rows and columns alone, or channels between places that follow them."""
    value, asked = value_of(first_argument(node)), node.args[1]
    index: list[Any] = list(asked) if isinstance(asked, tuple) else [asked]
    plain = (int, slice, OwnNumber)
    if not all(part is None or part is ... or type(part) in plain or _is_index(part) for part in index):
        tracer.unknown(node)
        return False
    taken = sum(part is not None and part is not ... for part in index)
    place = next((at for at, part in enumerate(index) if part is ...), len(index))
    index[place : place + 1] = [slice(None)] * (value.dim() - taken)
    by_dim = [part for part in index if part is not None]
    for dim in x.dims:
        part = by_dim[dim]
        if part == slice(None):
            continue
        if not isinstance(part, slice) or x.dims != [dim] or sum(map(_is_tensor, index)) > 1:
            tracer.unknown(node, "it takes some of the channels by their position")
            return False
        _slice_follows(tracer, node, x, part)
    return True


def _is_index(part: Any) -> bool:
    return isinstance(part, fx.Node) and (isinstance(value_of(part), int) or _is_tensor(part))


def _is_tensor(part: Any) -> bool:
    """Whether a part of an index is a tensor of places; which ones does not matter where channels are all the same."""
    value = value_of(part) if isinstance(part, fx.Node) else None
    return isinstance(value, Tensor) and value.dtype == torch.int64


def index_of_channels(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> fx.Node | None:
    """The tensor of places by which an operation takes channels, and takes nothing else than whole dimensions."""
    dims = value_of(first_argument(node)).dim() if isinstance(first_argument(node), fx.Node) else 0
    if node.op == "call_method" and name_of(node) == "index_select":
        dim, index = argument(node, 1, "dim"), argument(node, 2, "index")
        return index if x.dims == [dim % dims] else None
    if node.op != "call_method" or name_of(node) != "getitem":
        return None
    asked = node.args[1]
    parts: list[Any] = list(asked) if isinstance(asked, tuple) else [asked]
    found = [place for place, part in enumerate(parts) if _is_tensor(part)]
    if len(found) != 1 or any(part != slice(None) for part in parts if not _is_tensor(part) and part is not ...):
        return None
    front = all(part is not ... for part in parts[: found[0]])
    dim = found[0] if front else dims - len(parts) + found[0]
    return parts[found[0]] if x.dims == [dim] else None


def taken_by(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, index: fx.Node) -> LocatedChannels | None:
    """Channels in the order, and as often, as a buffer of places says, whose values the network itself has."""
    name = str(index.target)
    if index.op != "get_attr" or name not in tracer.free_tensors or isinstance(value_of(index), nn.Parameter):
        return tracer.unknown(node, "it takes channels by places that are no buffer of a module")
    places = tracer.net.get_buffer(name)
    [dim] = x.dims
    count = x.ids.shape[dim]
    if places.is_meta or places.dim() != 1 or not bool(((places >= 0) & (places < count)).all()):
        return tracer.unknown(node, f"it takes channels by {name}, whose places are not known, or counted from the end")
    found = LocatedChannels(x.ids.index_select(dim, places.cpu()))
    tracer.read_by(index, node)
    both = (ids.flatten().numpy() for ids in (x.ids, found.ids))
    return tracer.declare(node, found, tracer.wiring.index, name, *both)


def _slice_follows(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, part: slice) -> None:
    """The ends of a slice of channels have to stand where they stood."""
    channels = x.ids.flatten().numpy()
    step = part.step or 1
    if step != 1:
        if type(step) is not int or len(channels) % step:
            return tracer.freeze(x, node, "it takes some of the channels by their position")
        tracer.wiring.tie_blocks(channels, len(channels) // step)
    for end in (part.start, part.stop):
        if end is None:
            continue
        place = int(number_of(end))
        if place == 0 or place >= len(channels) or (end is part.start and type(end) is int and 0 < place < step):
            continue  # the last: one of each block that goes as a whole
        before, behind = channels[:place], channels[place:]
        if is_count(tracer, end, place):
            tie_counts(tracer, tracer.counts[end], before)
        elif isinstance(end, fx.Node):  # a part of the number of channels, which then goes from all parts alike
            tracer.wiring.tie_alike(channels, len(channels) // math.gcd(len(before), len(channels)))
        else:
            follow_count(tracer, node, x, -end if place < 0 else end, behind if place < 0 else before)
    return None
