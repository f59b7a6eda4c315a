"""Concatenations."""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, value_of
from norton.graph.rules.table import rule


@rule("cat concat concatenate", joins=True)
def concatenate(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels side by side; parts in which none are known count as inputs, which nobody prunes."""
    parts = argument(node, 0, "tensors")
    if isinstance(parts, fx.Node):
        return None  # a list that an operation made, which froze what it took
    dim = argument(node, 1, "dim", 0) % value_of(node).dim()
    located = [tracer.located[part] for part in parts]
    if not any(located):
        return None
    if any(x is not None and x.dim != dim for x in located):
        return tracer.unknown(node)
    wiring = tracer.wiring
    channels = [
        x.channels if x else wiring.input(value_of(part).shape[dim]) for x, part in zip(located, parts, strict=True)
    ]
    return LocatedChannels(wiring.cat(*channels), dim)
