"""Convolutions called as functions that filter each channel for itself, with a weight of no layer of torch's.

Blurs before a smaller map, as antialiased networks have them: a buffer with a kernel for each channel, or one for all.
"""

from typing import Any

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.computed_weights import ancestors, read_by_all

# What gives the same entries, of another type or layout.
_CONVERSIONS = ("to", "type", "type_as", "float", "double", "half", "bfloat16", "contiguous", "clone", "detach")
_REPEATS = ("expand", "repeat", "tile")


def filter_each(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place after a depthwise convolution; None where a node is no such convolution."""
    x, value, weight = tracer.input(node), value_of(first_argument(node)), argument(node, 1, "weight")
    bias, groups = argument(node, 2, "bias"), argument(node, 6, "groups", 1)
    dim = value.dim() - value_of(weight).dim() + 1
    channels = None if x is None or x.shifted or dim < 0 else x.along(dim, value.shape[dim])
    if x is None or channels is None or not _is_depthwise(weight, groups, len(channels)):
        return None
    tensors = [weight] if bias is None else [weight, bias]
    if not all(_is_of_a_module(tracer, tensor, len(channels)) for tensor in tensors):
        return None
    if isinstance(groups, OwnNumber):
        tracer.declare(node, x, tracer.wiring.size, groups.names[0], channels)
    elif _leaves(groups) == {_own(weight)}:  # the number of entries that the weight has
        read_by_all(tracer, [*ancestors(groups), node])
    for tensor in tensors:
        chain = _converted(tensor)
        if chain[-1].op == "get_attr":
            tracer.declare_entries(node, x, channels, chain.pop(), 0)
        read_by_all(tracer, [*ancestors(_own(tensor)), *_converted(tensor), node])
        for one in chain:
            tracer.located[one] = located(channels, 0, value_of(tensor).dim())
    return x


def _is_depthwise(weight: fx.Node, groups: Any, channels: int) -> bool:
    """Whether there is a kernel for each channel, and the number of groups can follow them."""
    number = value_of(groups) if isinstance(groups, fx.Node) else groups
    follows = isinstance(groups, fx.Node) or (isinstance(groups, OwnNumber) and bool(groups.names))
    return follows and channels > 1 and number == channels and value_of(weight).shape[:2] == (channels, 1)


def _converted(tensor: fx.Node) -> list[fx.Node]:
    """A tensor and those that it is a conversion of, the first of them last."""
    found = [tensor]
    while name_of(found[-1]) in _CONVERSIONS and found[-1].op == "call_method":
        found.append(first_argument(found[-1]))
    return found


def _own(tensor: fx.Node) -> fx.Node:
    """The tensor of a module that a weight is, or that it repeats for all channels."""
    source = _converted(tensor)[-1]
    return first_argument(source) if source.op == "call_method" and name_of(source) in _REPEATS else source


def _leaves(node: Any) -> set[fx.Node]:
    """What a node is computed of in the end."""
    return {one for one in ancestors(node) if not one.all_input_nodes}


def _is_of_a_module(tracer: ChannelTracer, tensor: fx.Node, channels: int) -> bool:
    """Whether a tensor of a module has an entry for each channel and may be cut, or is repeated for all, here alone."""
    *_, source = chain = _converted(tensor)
    if not all(one.op == "get_attr" or (len(one.users) == 1 and tracer.at(one) is None) for one in chain):
        return False
    if source.op == "get_attr":
        return str(source.target) in tracer.free_tensors and value_of(source).shape[0] == channels
    own, dims = _own(tensor), value_of(source).dim()
    once = value_of(own).dim() < dims or value_of(own).shape[0] == 1
    return own is not source and once and all(_is_kernel(tracer, one, dims - 2) for one in _leaves(own))


def _is_kernel(tracer: ChannelTracer, tensor: fx.Node, kernel_dims: int) -> bool:
    """Whether a tensor of a module has no entries for channels, but those of a kernel at most."""
    if str(tensor.target) not in tracer.free_tensors:
        return False
    shape = value_of(tensor).shape
    return len(shape) <= kernel_dims or shape[0] == 1
