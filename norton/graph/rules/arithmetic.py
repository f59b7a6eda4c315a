"""Sums, products and the like, element by element, with broadcasting."""

import torch
from torch import Tensor, fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels, compressed
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.rules.table import rule

# Also in place, with a `_` behind, or an `i` in front for operators.
_NAMES = """
add sub subtract rsub mul multiply div divide true_divide floor_divide pow float_power remainder fmod maximum minimum
fmax fmin atan2 arctan2 hypot copysign ldexp logaddexp logaddexp2 xlogy xlog1py zeta polygamma heaviside nextafter
addcmul addcdiv lerp gt greater ge greater_equal lt less le less_equal eq ne not_equal isclose logical_and logical_or
logical_xor bitwise_and bitwise_or bitwise_xor where masked_fill
"""
_OPERATORS = "add sub mul truediv floordiv mod pow and or xor"


@rule(" ".join(f"{name} i{name}" for name in _OPERATORS.split()), joins=True, takes_shifted=True)
@rule(" ".join(f"{name} {name}_" for name in _NAMES.split()), joins=True, takes_shifted=True)
def combine(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Several tensors, or tensors and numbers.  Channels that meet can only go together."""
    tensors = [arg for arg in node.all_input_nodes if isinstance(value_of(arg), Tensor)]
    first, *others = sorted(tensors, key=lambda tensor: tracer.at(tensor) is None)
    dims, x = value_of(node).dim(), tracer.at(first)
    if x is None:
        return None
    found: LocatedChannels | None = lifted(x, dims)
    shape = padded_shape(first, dims)
    for other in others:
        if found is None:
            return None
        found = _join(tracer, node, (found, shape), other)
        shape = [max(sizes) for sizes in zip(shape, padded_shape(other, dims), strict=True)]
    return found


def _join(
    tracer: ChannelTracer, node: fx.Node, first: tuple[LocatedChannels, list[int]], other: fx.Node
) -> LocatedChannels | None:
    """Channels of a tensor of some shape, after it met another one."""
    x, y = first[0], tracer.at(other)
    if y is None:
        return _combine_with_other(tracer, node, x, other)
    y = lifted(y, x.ids.dim())
    if x.shifted or y.shifted:
        return _add_shifted(tracer, node, x, y)
    return meet(tracer, node, first, (y, padded_shape(other, x.ids.dim())))


def lifted(x: LocatedChannels, dims: int) -> LocatedChannels:
    """Channels of a tensor as broadcasting sees it, with ones in front."""
    return x._replace(ids=x.ids.view(*[1] * (dims - x.ids.dim()), *x.ids.shape))


def padded_shape(node: fx.Node, dims: int) -> list[int]:
    shape = list(value_of(node).shape)
    return [1] * (dims - len(shape)) + shape


def meet(
    tracer: ChannelTracer,
    node: fx.Node,
    first: tuple[LocatedChannels, list[int]],
    second: tuple[LocatedChannels, list[int]],
) -> LocatedChannels | None:
    """Two tensors with channels, each with its shape.

    One that is the same for all channels of the other keeps its own: those meet all of the other.
    """
    (x, a), (y, b) = first, second
    one_with_all = [any(size[dim] == 1 for dim in other.dims) for other, size in ((x, b), (y, a))]
    if all(one_with_all):
        return tracer.unknown(node, "it lets channels meet that stand in other dimensions")
    for meets_all, own, other in ((one_with_all[0], y, x), (one_with_all[1], x, y)):
        if meets_all:
            tracer.freeze(own, node, "it meets other channels, one with all")
            return other
    for own, other, sizes in ((x, y, b), (y, x, a)):
        if own.dims and not other.dims and all(sizes[dim] > 1 for dim in own.dims):
            tracer.freeze(own, node, "all of its channels meet a single one")  # repeated as often as the code says
    ids, others = torch.broadcast_tensors(x.ids, y.ids)
    met = LocatedChannels(compressed(ids))
    if len(met.dims) > 1:
        return tracer.unknown(node, "it lets channels meet that stand in other dimensions")
    return tracer.declare(node, met, tracer.wiring.add, ids.flatten().numpy(), others.flatten().numpy())


def _add_shifted(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, y: LocatedChannels
) -> LocatedChannels | None:
    """A sum of which one side was moved by a crop-or-pad shortcut."""
    moved, still = (x, y) if x.shifted else (y, x)
    if still.shifted or "add" not in name_of(node) or moved.dims != still.dims:
        return tracer.unknown(node)
    ends = (side.ids.flatten().numpy() for side in (moved, still))
    return tracer.declare(node, still, tracer.wiring.shift, *ends)


def _combine_with_other(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, other: fx.Node
) -> LocatedChannels | None:
    """Channels with a tensor in which none are known: a parameter with an entry per channel, or the same for all."""
    shape = padded_shape(other, x.ids.dim())
    if x.shifted:
        return tracer.unknown(node)
    meeting = [dim for dim in x.dims if shape[dim] > 1]
    if not meeting:
        return x
    [dim], own = x.dims, value_of(other)
    if str(other.target) not in tracer.free_tensors or other.op != "get_attr" or shape[dim] != x.ids.shape[dim]:
        return tracer.unknown(node, "its other side has channels that cannot be followed")
    channels = x.ids.flatten().numpy()
    return tracer.declare_entries(node, x, channels, other, own.dim() - (x.ids.dim() - dim))


@rule("glu", layers=[nn.GLU])
def gate(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """One half of a tensor times a gate made of the other half, whose channels then meet."""
    x, value = tracer.input(node), value_of(first_argument(node))
    dim = tracer.layer(node).dim if node.op == "call_module" else argument(node, 1, "dim", -1)
    if x is None or x.shifted or dim % value.dim() not in x.dims:
        return x if x and not x.shifted else tracer.unknown(node)
    first, second = x.ids.chunk(2, dim)
    return tracer.declare(
        node, LocatedChannels(first), tracer.wiring.add, first.flatten().numpy(), second.flatten().numpy()
    )
