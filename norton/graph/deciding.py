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
from norton.graph.nodes import VALUE

CALLS = "calls"  # the modules whose forward pass runs at a node, outermost first, each with the number of its call
TOLD = "told"  # set where Python takes values, or where what a tensor has depends on them

REASON = "the network decides by values here, so that it may take another way for other data"
_TOLD_BY = {"bool", "item", "tolist", "int", "float", "index", "complex", "numpy", "array", "is_nonzero"}
_TOLD_BY |= {"contains", "equal", "allclose"}
_SIZED_BY = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histogram"}


def takes_values(name: str, args: tuple, result: Any) -> bool:
    """Whether an operation tells Python what is in a tensor, or gives one whose size depends on it."""
    if not any(isinstance(value, Tensor) for value in tree_leaves(result)):
        return name in _TOLD_BY
    if name == "getitem":  # by a mask
        return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(args[1:]))
    return name in _SIZED_BY or (name == "where" and len(args) == 1)


def values_decided(graph: fx.Graph) -> list[Any]:
    """What Python took of values, in order; see `norton.graph.execution.record`."""
    told = [node.meta[VALUE] for node in graph.nodes if node.meta.get(TOLD) and node.target != "argument"]
    return [value for value in told if not any(isinstance(x, Tensor) for x in tree_leaves(value))]


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
