"""Numbers and shapes in a forward pass: the channels whose number they depend on.

Where such a number is used other than as a size in a reshape, the channels are kept whole.
"""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import first_argument, name_of, value_of
from norton.graph.wiring import Channels


def counted_channels(tracer: ChannelTracer, node: fx.Node) -> Channels:
    """The channels whose number a node without tensors depends on; notes in the tracer which nodes are shapes."""
    if (counted := _part_of_shape(tracer, node)) is not None:
        return counted
    x = tracer.input(node)
    if x is None:  # computed of other numbers
        return tuple(span for arg in node.all_input_nodes for span in tracer.counts.get(arg, ()))
    name = name_of(node)
    if name == "size" and len(node.args) == 2 and isinstance(dim := node.args[1], int):
        return x.channels if dim % _dimensions(node) == x.dim else ()
    if name == "size":
        tracer.shapes[node] = (x, range(_dimensions(node)))
    return x.channels


def _part_of_shape(tracer: ChannelTracer, node: fx.Node) -> Channels | None:
    """The channels whose number an entry or a slice of a shape has; None for what is neither."""
    if name_of(node) != "getitem" or not isinstance(index := node.args[1], int | slice):
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node) or source not in tracer.shapes:
        return None
    x, dims = tracer.shapes[source]
    if isinstance(index, int):
        return _counted_at(x, [dims[index]])
    tracer.shapes[node] = (x, dims[index])
    return _counted_at(x, dims[index])


def _counted_at(x: LocatedChannels, dims: list[int] | range) -> Channels:
    return x.channels if x.dim in dims else ()


def _dimensions(node: fx.Node) -> int:
    return value_of(first_argument(node)).dim()
