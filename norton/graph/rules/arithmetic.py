"""Sums, products and the like, element by element, with broadcasting."""

from torch import Tensor, fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, first_argument, name_of, place_of, value_of
from norton.graph.rules.table import rule


@rule(
    "add add_ iadd sub sub_ isub mul mul_ imul multiply truediv itruediv div div_ true_divide pow maximum minimum",
    joins=True,
    takes_shifted=True,
)
def combine(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Two tensors, or one and a number.  Where channels meet channels, they become one axis."""
    tensors = [arg for arg in node.all_input_nodes if isinstance(value_of(arg), Tensor)]
    if len(tensors) == 1:
        return tracer.located[tensors[0]]
    if tracer.located[tensors[0]] is None:
        tensors.reverse()
    first, second = tensors
    x, y = tracer.located[first], tracer.located[second]
    if x is None:
        return None
    a, b = value_of(first), value_of(second)
    dim = x.dim - a.dim()  # counted from the end, as broadcasting does
    result = LocatedChannels(x.channels, value_of(node).dim() + dim, x.shifted)
    if y is None:
        return _combine_with_other(tracer, node, result, second, dim, a.shape[dim])
    size = _size(b, dim)
    if y.dim - b.dim() != dim or a.shape[dim] != size:
        return _broadcast(tracer, node, *((a, x, b, y) if size == 1 else (b, y, a, x)))
    if x.shifted or y.shifted:
        return _add_shifted(tracer, node, result, x, y)
    return tracer.declare(node, result, tracer.wiring.add, x.channels, y.channels)


def _add_shifted(
    tracer: ChannelTracer, node: fx.Node, result: LocatedChannels, x: LocatedChannels, y: LocatedChannels
) -> LocatedChannels | None:
    """A sum of which one side was moved by a crop-or-pad shortcut."""
    moved, still = (x, y) if x.shifted else (y, x)
    if still.shifted or "add" not in name_of(node):
        return tracer.unknown(node)
    result = result._replace(channels=still.channels, shifted=False)
    return tracer.declare(node, result, tracer.wiring.shift, moved.channels, still.channels)


def _broadcast(
    tracer: ChannelTracer, node: fx.Node, a: Tensor, x: LocatedChannels, b: Tensor, y: LocatedChannels
) -> LocatedChannels | None:
    """Channels x of a with a tensor b that is the same for all of them, and whose own channels y then stay whole."""
    if x.shifted or y.shifted or _size(b, x.dim - a.dim()) != 1:
        return tracer.unknown(node, "it lets channels meet that stand in other dimensions, or another number of them")
    tracer.wiring.freeze(y.channels, f"{place_of(node)}: it meets other channels, one with all")
    return LocatedChannels(x.channels, value_of(node).dim() + x.dim - a.dim())


def _combine_with_other(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, other: fx.Node, dim: int, count: int
) -> LocatedChannels | None:
    """Channels with a tensor in which none are known: a parameter with an entry per channel, or the same for all.

    dim: where they meet, from the end.  count: the number of channels.
    """
    value = value_of(other)
    if x.shifted:
        return tracer.unknown(node)
    if _size(value, dim) == 1:
        return x
    if str(other.target) not in tracer.free_tensors or other.op != "get_attr" or _size(value, dim) != count:
        return tracer.unknown(node, "its other side has channels that cannot be followed")
    return tracer.declare_entries(node, x, other, value.dim() + dim)


@rule("expand_as", joins=True)
def expand_as(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A tensor repeated to the size of another one, whose channels it has."""
    x, y = tracer.input(node), tracer.located[argument(node, 1, "other")]
    before, after = value_of(first_argument(node)), value_of(node)
    if x and y and x.dim == y.dim and before.dim() == after.dim() and before.shape[x.dim] == after.shape[x.dim]:
        return tracer.declare(node, x, tracer.wiring.add, x.channels, y.channels)
    return tracer.unknown(node)


def _size(tensor: Tensor, dim: int) -> int:
    """The size of a dimension counted from the end, as broadcasting sees it."""
    return tensor.shape[dim] if -dim <= tensor.dim() else 1
