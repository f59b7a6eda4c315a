"""Weights that a layer computes of its own parameters before each call, such as standardised ones.

A computed weight is followed as any tensor: its filters have to stand where those of the parameter stand.  What is
computed over the inputs of a filter (its mean, its norm) is computed over those that stay.
"""

from collections.abc import Iterable

import numpy as np
from torch import Tensor, fx

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, located
from norton.graph.nodes import name_of, value_of
from norton.graph.rules.table import RULES


def ancestors(node: fx.Node) -> list[fx.Node]:
    """All nodes that compute what a node gives, and itself, in order."""
    found, left = {node}, [node]
    while left:
        for arg in left.pop().all_input_nodes:
            if arg not in found:
                found.add(arg)
                left.append(arg)
    return [one for one in node.graph.nodes if one in found]


def comes_of(node: fx.Node, name: str, tensor: str) -> bool:
    """Whether a tensor is computed of a parameter of a layer, and of nothing but other tensors of it and of sizes."""
    nodes = ancestors(node)
    leaves = {str(one.target) for one in nodes if one.op == "get_attr"}
    own = all(leaf.rpartition(".")[0] == name for leaf in leaves) and f"{name}.{tensor}".lstrip(".") in leaves
    return own and not any(one.op in ("placeholder", "call_module") for one in nodes)


def filters_stand(tracer: ChannelTracer, node: fx.Node, filters: Channels) -> bool:
    """Whether the filters of a computed weight, or the entries of a computed bias, are at the places of a layer's."""
    x = tracer.at(node)
    found = None if x is None else x.along(0, len(filters))
    return found is not None and _same(tracer, found, filters)


def inputs_stand(tracer: ChannelTracer, node: fx.Node, parameter: str) -> bool:
    """Whether the inputs of a computed weight are at the places of the parameter's."""
    scratch = ChannelTracer(tracer.net)
    inputs: Channels | None = None
    for one in ancestors(node):
        value = value_of(one)
        scratch.located[one] = None
        if one.op == "get_attr" and str(one.target) == parameter:
            inputs = scratch.wiring.unwritten(value.shape[1])
            scratch.located[one] = located(inputs, 1, value.dim())
        elif one.op == "call_method" and isinstance(value, Tensor):
            rule = RULES.get(name_of(one))
            scratch.located[one] = scratch.unknown(one) if rule is None else rule.follow(scratch, one)
    x = scratch.at(node)
    found = None if x is None or inputs is None else x.along(1, len(inputs))
    return found is not None and inputs is not None and not scratch.wiring.has_frozen and _same(scratch, found, inputs)


def _same(tracer: ChannelTracer, some: Channels, others: Channels) -> bool:
    return np.array_equal(tracer.wiring.representatives(some), tracer.wiring.representatives(others))


def read_by_all(tracer: ChannelTracer, nodes: Iterable[fx.Node]) -> None:
    """The parameters among these nodes are taken by the others in a way that is followed."""
    known = set(nodes)
    for one in known:
        for user in one.users:
            if one.op == "get_attr" and user in known:
                tracer.read_by(one, user)
