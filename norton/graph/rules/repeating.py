"""One number for all channels, repeated as often as there are channels (`expand`, `repeat`), as gates are.

What comes out then belongs to the channels that were counted: of a channel that goes, its copy goes as well.
"""

from typing import Any

from torch import Tensor, fx

from norton.graph.channels import ChannelTracer, Located, LocatedChannels, located
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.arithmetic import combine, lifted, meet, padded_shape
from norton.graph.rules.counts import is_count
from norton.graph.rules.elementwise import keep
from norton.graph.rules.moving import move, sizes_asked
from norton.graph.rules.table import RULES, rule

_FOR_ALL = "it is repeated for all channels of another tensor"


@rule("expand_as broadcast_tensors", joins=True, gives_parts=True)
def repeat_as(tracer: ChannelTracer, node: fx.Node) -> Located:
    """A tensor repeated to the size of another one, or several to a common one."""
    if name_of(node) == "expand_as":
        return _like(tracer, node, first_argument(node), argument(node, 1, "other"))
    tensors = list(node.args[0]) if isinstance(node.args[0], list | tuple) else list(node.args)
    if len(tensors) != 2:
        return tracer.unknown(node)
    return [_like(tracer, node, *pair) for pair in (tensors, tensors[::-1])]


def _like(tracer: ChannelTracer, node: fx.Node, tensor: fx.Node, other: fx.Node) -> LocatedChannels | None:
    """The channels of another tensor, where it had the same number for all of them."""
    x, y = tracer.at(tensor), tracer.at(other)
    dims = max(value_of(tensor).dim(), value_of(other).dim())
    shape, others = padded_shape(tensor, dims), padded_shape(other, dims)
    if y is not None and y.dims and all(shape[dim] == 1 for dim in lifted(y, dims).dims):
        if x is not None and x.dims:
            return tracer.unknown(node, "it repeats channels for each of other channels")
        return _repeated(tracer, node, x, lifted(y, dims))
    if x is None:
        return None
    x = lifted(x, dims)
    if y is None or not x.dims or all(others[dim] == 1 for dim in x.dims):
        return x
    return meet(tracer, node, (x, shape), (lifted(y, dims), others))


@rule("expand broadcast_to repeat tile", joins=True)
def repeat(tracer: ChannelTracer, node: fx.Node) -> Located:
    """The same by numbers, of which one counts channels; else, channels at their new places."""
    tensor, value, sizes = first_argument(node), value_of(node), sizes_asked(node)
    x, shape = tracer.at(tensor), padded_shape(tensor, value.dim())
    if len(sizes) != value.dim() or (x is None and not _meets_others(node)):
        return move(tracer, node)  # as kernels of a depthwise convolution, whose rule knows what they are
    for dim, size in enumerate(sizes):
        if shape[dim] == 1 < value.shape[dim] and _counts(tracer, size, dim, value.shape[dim]):
            if x is not None and x.dims:
                return tracer.unknown(node, "it repeats channels for each of other channels")
            tracer.read_by(tensor, node)
            return _repeated(tracer, node, x, _counted(tracer, node, size, dim))
    return move(tracer, node)


def _counts(tracer: ChannelTracer, size: Any, dim: int, number: int) -> bool:
    """Whether a size is a number of channels: of a tensor, or one that a module holds, at the usual place."""
    return dim == 1 if isinstance(size, OwnNumber) and size.names else is_count(tracer, size, number)


def _counted(tracer: ChannelTracer, node: fx.Node, size: Any, dim: int) -> LocatedChannels:
    dims = value_of(node).dim()
    if not isinstance(size, OwnNumber):
        return located(tracer.counts[size], dim, dims)
    found = located(tracer.wiring.unwritten(int(size)), dim, dims)  # they show by what they meet
    return tracer.declare(node, found, tracer.wiring.size, size.names[0], found.ids.flatten().numpy())


def _repeated(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels | None, others: LocatedChannels
) -> LocatedChannels:
    """Copies of one number at the places of other channels, which they may only scale or shift.

    A layer that reads the copies themselves would get less of them than with channels that are dead.
    """
    tracer.freeze(x, node, _FOR_ALL)
    if not _meets_others(node):
        tracer.freeze(others, node, "a copy for each channel is read by itself")
    return others


def _meets_others(node: fx.Node) -> bool:
    """Whether all that takes what a node gives combines it with what other operations give, element by element."""
    for user in node.users:
        rule_of = RULES.get(name_of(user)) if user.op == "call_method" else None
        follow = None if rule_of is None else rule_of.follow
        part = name_of(user) == "getitem" and not hasattr(value_of(node), "dim")
        with_others = (
            sum(arg.op != "get_attr" and isinstance(value_of(arg), Tensor) for arg in user.all_input_nodes) > 1
        )
        if follow is combine and with_others:
            continue
        if not ((follow in (combine, keep) or part) and _meets_others(user)):
            return False
    return True
