"""Operations that move numbers: reshapes, parts, concatenations, shuffles.

Where channels go shows when the operation is run on their ids (`norton.graph.moving`).  What is left to say is which
of its sizes follow when channels are cut: then only such channels can go together that the tensor stays a block.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, Located, LocatedChannels, compressed, located_in
from norton.graph.execution import LINE
from norton.graph.moving import MOVES, MOVING_LAYERS, as_located, moved
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.table import rule

_PARTS = ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes")
_SIZED = ("view", "reshape", "expand", "unflatten")
_SHUFFLES = ("channelshuffle", "channel_shuffle", "native_channel_shuffle")
_JOINS = ("cat", "concat", "concatenate", "stack", "hstack", "vstack")


@rule(" ".join((*MOVES, "index_select")), layers=MOVING_LAYERS, joins=True, gives_parts=True)
def move(tracer: ChannelTracer, node: fx.Node) -> Located:
    """Channels at their new places."""
    first = first_argument(node)
    if isinstance(first, fx.Node) and isinstance(tracer.located.get(first), list) and name_of(node) == "getitem":
        parts: Any = tracer.located[first]
        return parts[node.args[1]]
    given = tracer.arguments(node)
    if not given:
        return None
    name = operation(tracer, node)
    if any(x.shifted for x in given):
        return tracer.unknown(node)
    if name == "squeeze" and len(node.args) + len(node.kwargs) < 2:
        return tracer.unknown(node, "squeeze without a dimension also removes a channel axis of width 1")
    if (index := _index_of_channels(tracer, node, given[0])) is not None:
        return _taken(tracer, node, given[0], index)
    if name == "index_select":
        along = argument(node, 1, "dim") % value_of(node).dim()
        return (
            tracer.unknown(node, "it takes some of the channels by their position")
            if along in given[0].dims
            else given[0]
        )
    if name in (*_PARTS, "unbind", "select", "getitem", "narrow") and not _parts_follow(tracer, node, given[0]):
        return None
    layer = tracer.layer(node) if node.op == "call_module" else None
    found = as_located(moved(node, lambda arg: _ids(tracer, node, arg), layer))
    if name in _PARTS:
        _tie_parts(tracer, node, found)
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


# Parts: which sizes and places follow


def _parts_follow(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> bool:
    """Whether parts along channels can be followed; says to the wiring what their sizes and places ask for."""
    name = name_of(node)
    if name == "getitem":
        return _index_follows(tracer, node, x)
    dims = value_of(first_argument(node)).dim()
    dim = argument(node, 1 if name in ("unbind", "select", "narrow") else 2, "dim", 0) % dims
    if dim not in x.dims:
        return True
    if x.dims == [dim] and name == "narrow":
        _part_follows(tracer, node, x)
        return True
    if x.dims != [dim] or name in ("unbind", "select", "narrow", "tensor_split"):
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
        whole, rest = divmod(len(channels), int(_value(sizes)))
        if rest and type(sizes) is not int:  # else it would be divided into more parts when fewer go from the last one
            tracer.unknown(node, "it divides channels into parts of different sizes")
            return False
        sizes = [sizes] * whole + ([rest] if rest else [])
    place = 0
    for size in sizes:
        part = channels[place : place + int(_value(size))]
        _count(tracer, node, x, size, part)
        place += len(part)
    if all(isinstance(size, fx.Node) and not _counts(tracer, size, _value(size)) for size in sizes):
        tracer.wiring.add(*_blocks(channels, math.gcd(*map(_value, sizes))))  # shares of the number of channels
    return True


def _part_follows(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> None:
    """The start and the length of a part are the numbers of channels in front of it and in it."""
    channels, start, length = x.ids.flatten().numpy(), argument(node, 2, "start"), argument(node, 3, "length")
    first = int(_value(start))
    for size, part in ((start, channels[:first]), (length, channels[first : first + int(_value(length))])):
        if len(part):
            _count(tracer, node, x, size, part)


def _section_sizes(node: fx.Node) -> Any:
    """What a split is asked for, under any of its names; for `chunk` the number of parts."""
    named = (node.kwargs[key] for key in node.kwargs if key.startswith(("split", "chunks")))
    return argument(node, 1, "", next(named, None))


def _value(size: Any) -> int:
    return value_of(size) if isinstance(size, fx.Node) else size


def _count(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, size: Any, part: Channels) -> None:
    """A size in the code is the number of these channels."""
    if isinstance(size, OwnNumber) and size.names:
        tracer.declare(node, x, tracer.wiring.size, size.names[0], part)
    elif _counts(tracer, size, len(part)):
        _tie_counts(tracer, tracer.counts[size], part)
    elif not isinstance(size, fx.Node):
        reason = f"it takes {size} of the channels, which is written down and does not follow them"
        tracer.freeze(LocatedChannels(torch.from_numpy(part)), node, reason)


def _counts(tracer: ChannelTracer, size: Any, number: int) -> bool:
    """Whether a size is the number of so many channels, of whatever tensor, rather than computed of it."""
    if not isinstance(size, fx.Node) or name_of(size) not in ("size", "getitem"):
        return False
    return len(tracer.counts.get(size, ())) == number


def _tie_parts(tracer: ChannelTracer, node: fx.Node, parts: Located) -> None:
    """Parts of the same size, of a size that follows the channels, lose the same channels."""
    known = located_in(parts)
    sizes = _section_sizes(node)
    if isinstance(sizes, list | tuple) and any(isinstance(size, OwnNumber) for size in sizes):
        return  # each follows a number of its own
    for part in known[1:]:
        if part.ids.shape == known[0].ids.shape and not isinstance(sizes, OwnNumber):
            tracer.wiring.add(known[0].ids.flatten().numpy(), part.ids.flatten().numpy())


def _tie_groups(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> None:
    """A shuffle has a number of groups of its own, of which each loses the same channels."""
    groups = tracer.layer(node).groups if node.op == "call_module" else argument(node, 1, "groups")
    channels = x.ids.flatten().numpy()
    tracer.wiring.add(*_blocks(channels, len(channels) // int(groups)))


def _index_follows(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> bool:
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


def _index_of_channels(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> fx.Node | None:
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


def _taken(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, index: fx.Node) -> LocatedChannels | None:
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
        place = int(_value(end))
        if place == 0 or place >= len(channels):
            continue
        before, behind = channels[:place], channels[place:]
        if _counts(tracer, end, place):
            _tie_counts(tracer, tracer.counts[end], before)
        elif isinstance(end, fx.Node):  # a part of the number of channels, which then goes from all parts alike
            tracer.wiring.add(*_blocks(channels, math.gcd(len(before), len(channels))))
        else:
            _count(tracer, node, x, -end if place < 0 else end, behind if place < 0 else before)
    return None


def _blocks(channels: Channels, size: int) -> tuple[Channels, Channels]:
    """(each block of channels but the first, the first one as often), to be tied."""
    blocks = channels.reshape(-1, size)
    return blocks[1:].flatten(), blocks[:1].repeat(len(blocks) - 1, axis=0).flatten()


# Shapes: which dimension follows


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
        written = ", ".join(str(sizes.get(dim)) for dim in found.dims)
        return tracer.unknown(
            node, f"it reshapes channels to {written}, which is written down and does not follow them"
        )
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
        _tie_counts(tracer, tracer.counts.get(size), ids.flatten().numpy())
    return LocatedChannels(ids)


def _tie_counts(tracer: ChannelTracer, counted: Channels | None, channels: Channels) -> None:
    """A tensor gets as many channels as another one has: they lose the same ones, if they are not the same anyway."""
    if counted is None or len(counted) != len(channels):
        return
    same = (sorted(tracer.wiring.representatives(ids)) for ids in (counted, channels))
    if next(same) != next(same):
        tracer.wiring.add(counted, channels)


def _tie_divided(tracer: ChannelTracer, sizes: dict[int, Any], dim: int, ids: Tensor) -> None:
    """A width divided by a number of heads, `C // self.num_heads`: what it counts goes with the heads."""
    heads = sizes.get(dim)
    for other, size in sizes.items():
        if isinstance(heads, OwnNumber) and isinstance(size, fx.Node) and name_of(size) == "floordiv":
            width, by = size.args
            counted = tracer.counts.get(width) if isinstance(width, fx.Node) and by is heads else None
            if counted is not None and len(counted) == ids.shape[dim] * ids.shape[other]:
                own = ids.movedim((dim, other), (-2, -1)).flatten(0, -3)[0]
                _tie_counts(tracer, counted, own.flatten().numpy())


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
    asked: Sequence[Any] = [*node.args[1:], *([] if len(node.args) > 1 else node.kwargs.values())]
    if len(asked) == 1 and isinstance(asked[0], list | tuple):
        asked = asked[0]
    return dict(enumerate(asked)) if len(asked) == value_of(node).dim() else {}
