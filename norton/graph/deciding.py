"""Networks that decide by values: which way their code takes for other data, no record shows.

Where Python takes values of tensors (`if x.mean() > 0`, `.item()`, `nonzero`), all code that runs then may go on in
another way for other data, and call other layers on anything that it holds.  What it cannot do is change what happens
inside of a module whose own forward pass, with all that this calls, takes no values.  So only channels that are written
and read within one call of such a module are cut; all others stay.
"""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from norton.graph.channels import ChannelTracer
from norton.graph.nodes import depending_on_inputs, name_of, value_of

CALLS = "calls"  # the modules whose forward pass runs at a node, outermost first, each with the number of its call
TOLD = "told"  # set where Python takes values, or where what a tensor has depends on them

REASON = "the network decides by values here, so that it may take another way for other data"
_TOLD_BY = {"bool", "item", "tolist", "int", "float", "index", "complex", "numpy", "array", "is_nonzero"}
_TOLD_BY |= {"contains", "equal", "allclose"}
_SIZED_BY = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histogram", "nms"}


def takes_values(name: str, args: tuple, result: Any) -> bool:
    """Whether an operation tells Python what is in a tensor, or gives one whose size depends on it."""
    if not any(isinstance(value, Tensor) for value in tree_leaves(result)):
        return name in _TOLD_BY
    return sized_by_values(name, args)


def sized_by_values(name: str, args: tuple) -> bool:
    """Whether the size of what an operation gives depends on values."""
    return name in _SIZED_BY or (name == "where" and len(args) == 1) or indexes_by_values(name, args)


def indexes_by_values(name: str, args: tuple) -> bool:
    """Whether an index takes or sets a part whose size depends on values: of a mask, or of the ends of a slice."""
    if name not in ("getitem", "setitem"):
        return False
    parts = tree_leaves(args[1])
    slices = (part for part in parts if isinstance(part, slice))
    if any(isinstance(end, Tensor) for part in slices for end in (part.start, part.stop, part.step)):
        return True
    return name == "getitem" and any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in parts)


def values_decided(graph: fx.Graph) -> list[Any]:
    """What Python took of values, in order, see `norton.graph.execution.record`; of parts by values, their index."""
    told = [node for node in graph.nodes if node.meta.get(TOLD) and node.target != "argument"]
    by_index = ("getitem", "setitem")
    return [fx.node.map_arg(node.args[1], value_of) if name_of(node) in by_index else value_of(node) for node in told]


def decides_by_data(graph: fx.Graph) -> bool:
    """Whether Python takes values that depend on the network's inputs."""
    return any(node.meta.get(TOLD) for node in depending_on_inputs(graph))


def freeze_undecided(tracer: ChannelTracer, graph: fx.Graph) -> None:
    """Keep the channels that pass between calls of modules whose code takes no values, if any code does."""
    undecided = {name for node in graph.nodes if node.meta.get(TOLD) for name, _ in node.meta[CALLS]}
    if not undecided:
        return

    def region(node: fx.Node) -> tuple[str, int] | None:
        """The outermost call around a node whose module takes no values; None where there is none."""
        calls = node.meta.get(CALLS, ())
        around = calls[:-1] if node.op == "call_module" else calls
        return next((call for call in around if call[0] not in undecided), None)

    for node in graph.nodes:
        own = region(node)
        if own is None or any(region(arg) != own for arg in node.all_input_nodes):
            tracer.freeze_arguments(node, REASON)
