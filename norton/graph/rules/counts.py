"""Numbers and shapes in a forward pass: the channels whose number they depend on."""

from typing import Any

import numpy as np
from torch import fx

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer
from norton.graph.nodes import first_argument, name_of, value_of


def counted_channels(tracer: ChannelTracer, node: fx.Node) -> Channels | None:
    """The channels whose number a node without tensors depends on; notes in the tracer which nodes are shapes."""
    if name_of(node) == "getitem" and (source := node.args[0]) in tracer.shapes:
        return _part_of_shape(tracer, node, source)
    tensor = first_argument(node)
    if tracer.at(tensor) is None:  # computed of other numbers
        found = [counted for arg in node.all_input_nodes if (counted := tracer.counts.get(arg)) is not None]
        return np.concatenate(found) if found else None
    dims = range(value_of(tensor).dim())
    if name_of(node) == "size" and len(node.args) == 2 and isinstance(dim := node.args[1], int):
        return _counted(tracer, tensor, [dims[dim]])
    if name_of(node) == "size":
        tracer.shapes[node] = (tensor, dims)
    return _counted(tracer, tensor, dims)


def _part_of_shape(tracer: ChannelTracer, node: fx.Node, source: fx.Node) -> Channels | None:
    """The channels whose number an entry or a slice of a shape has."""
    tensor, dims = tracer.shapes[source]
    index = node.args[1]
    if isinstance(index, int):
        return _counted(tracer, tensor, [dims[index]])
    if isinstance(index, slice):
        tracer.shapes[node] = (tensor, dims[index])
        return _counted(tracer, tensor, dims[index])
    return _counted(tracer, tensor, dims)


def _counted(tracer: ChannelTracer, tensor: fx.Node, dims: list[int] | range) -> Channels | None:
    x = tracer.at(tensor)
    return x.ids.flatten().numpy() if x is not None and not set(x.dims).isdisjoint(dims) else None


def number_of(size: Any) -> int:
    """The value of a size that an operation is given, recorded or written down."""
    return value_of(size) if isinstance(size, fx.Node) else size


def is_count(tracer: ChannelTracer, size: Any, number: int) -> bool:
    """Whether a size is the number of so many channels, of whatever tensor, rather than computed of it."""
    if not isinstance(size, fx.Node) or name_of(size) not in ("size", "getitem"):
        return False
    counted = tracer.counts.get(size)
    return counted is not None and len(counted) == number


def tie_counts(tracer: ChannelTracer, counted: Channels | None, channels: Channels) -> None:
    """A tensor gets as many channels as another one has: they lose the same ones, if they are not the same anyway."""
    if counted is None or len(counted) != len(channels):
        return
    same = (sorted(tracer.wiring.representatives(ids)) for ids in (counted, channels))
    if next(same) != next(same):
        tracer.wiring.add(counted, channels)
