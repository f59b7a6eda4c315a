"""Assignments to parts of a tensor, as in a temporal shift: `out[:, 1:, :fold] = x[:, :-1, :fold]`.

What is put somewhere goes with the channels that are there, so that whoever holds the tensor, or a part of it, may go
on reading them as theirs.  What is the same for all channels would wake dead ones, but for zeros.
"""

from torch import Tensor, fx

from norton.graph.channels import ChannelTracer, LocatedChannels, compressed
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.rules.arithmetic import lifted, meet, padded_shape
from norton.graph.rules.indexing import index_follows
from norton.graph.rules.table import rule
from norton.graph.sizes import plain

_WHERE = "what it puts there is not followed"


@rule("setitem", joins=True, sizes=(1, "index"))
@rule("copy_", joins=True)
def assign(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place, of which those that are assigned to can only go with those that are assigned."""
    x = tracer.input(node)
    value = argument(node, 2, "value") if name_of(node) == "setitem" else argument(node, 1, "src")
    part = None if x is None else _part(tracer, node, x)
    if x is None or part is None:
        return tracer.unknown(node, _WHERE)
    if isinstance(value, int | float) and value == 0:
        return x
    others, dims, own = tracer.at(value), part.dim(), LocatedChannels(compressed(part))
    if others is None or others.ids.dim() > dims:
        return tracer.unknown(node, _WHERE)
    shape = padded_shape(value, dims)
    if any(shape[dim] != part.shape[dim] for dim in own.dims):
        return tracer.unknown(node, _WHERE)
    met = meet(tracer, node, (own, list(part.shape)), (lifted(others, dims), shape))
    return None if met is None else x


def _part(tracer: ChannelTracer, node: fx.Node, x: LocatedChannels) -> Tensor | None:
    """The channel at each place that is assigned to, where the index of these places follows the channels."""
    whole = x.ids.expand(value_of(first_argument(node)).shape)
    if name_of(node) != "setitem":
        return whole
    index = fx.node.map_arg(node.args[1], value_of)
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, Tensor | list) for part in parts) or not index_follows(tracer, node, x):
        return None
    return whole[fx.node.map_aggregate(parts, plain)]
