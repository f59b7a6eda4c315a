"""New tensors of zeros, such as the first state of a loop: silent, so that they may have any channels.

They are those of the tensor whose number of channels they are made with, or those that a number of a module counts.
"""

from typing import Any

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.nodes import name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.counts import is_count
from norton.graph.rules.table import Sizes, rule


@rule("zeros", sizes=Sizes(0, "size", several=True))
@rule("new_zeros", joins=True, sizes=Sizes(1, "size", several=True))
def make_zeros(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Zeros along one dimension that counts channels; None where none does, or several."""
    sizes = _sizes(node)
    counted = [dim for dim, size in enumerate(sizes) if is_count(tracer, size, value_of(node).shape[dim])]
    if len(counted) == 1:
        return located(tracer.counts[sizes[counted[0]]], counted[0], len(sizes))
    own = [dim for dim, size in enumerate(sizes) if isinstance(size, OwnNumber) and size.names]
    if counted or not own or (len(own) > 1 and 1 not in own):
        return None
    dim = own[0] if len(own) == 1 else 1  # others are usually numbers of rows and columns
    found = located(tracer.wiring.unwritten(int(sizes[dim])), dim, len(sizes))
    return tracer.declare(node, found, tracer.wiring.size, sizes[dim].names[0], found.ids.flatten().numpy())


def _sizes(node: fx.Node) -> list[Any]:
    """The sizes that are asked for, one by one or in a list."""
    asked = list(node.args) if name_of(node) == "zeros" else list(node.args[1:])
    if not asked and "size" in node.kwargs:
        asked = [node.kwargs["size"]]
    return list(asked[0]) if len(asked) == 1 and isinstance(asked[0], list | tuple) else asked
