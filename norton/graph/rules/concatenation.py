"""Concatenations, and parts of tensors along other dimensions than that of the channels."""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.rules.table import rule


@rule("cat concat concatenate", joins=True)
def concatenate(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels side by side; parts in which none are known count as inputs, which nobody prunes."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):  # a list that an operation made
        return tracer.unknown(node)
    dim = argument(node, 1, "dim", argument(node, 1, "axis", 0)) % value_of(node).dim()
    located = [tracer.located[part] for part in parts]
    if not any(located):
        return None
    if all(x is not None and x.dim != dim for x in located):
        return _stacked(tracer, node, located)
    if any(x is not None and x.dim != dim for x in located):
        return tracer.unknown(node)
    wiring = tracer.wiring
    channels = [
        x.channels if x else wiring.input(value_of(part).shape[dim]) for x, part in zip(located, parts, strict=True)
    ]
    return LocatedChannels(wiring.cat(*channels), dim)


def _stacked(tracer: ChannelTracer, node: fx.Node, located: list[LocatedChannels | None]) -> LocatedChannels | None:
    """Parts laid one after the other along another dimension, so that their channels meet."""
    first, *others = (x for x in located if x is not None)
    if any(x.dim != first.dim or x.shifted for x in (first, *others)):
        return tracer.unknown(node)
    for x in others:
        tracer.declare(node, first, tracer.wiring.add, first.channels, x.channels)
    return first


@rule("chunk split tensor_split unsafe_chunk unsafe_split split_with_sizes unbind", gives_parts=True)
def part(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Parts along another dimension; sizes of parts of channels are written down, and do not follow them."""
    x, named = tracer.input(node), name_of(node) == "unbind"
    if x is None:
        return None
    dim = argument(node, 1 if named else 2, "dim", 0) % value_of(first_argument(node)).dim()
    if dim == x.dim:
        return tracer.unknown(node, "it takes some of the channels by their position")
    return x._replace(dim=x.dim - (named and dim < x.dim))
