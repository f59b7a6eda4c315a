"""Layers that no recorded pass calls, though the code names them: behind `if x.shape[-1] > 32`, or for more arguments.

What such a layer reads, and what meets that which it writes, no record shows.  It can only be something that the code
which may call it has in its hands; so that stays, and what is inside of the modules that this code calls may go.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

import torch
from torch import fx, nn

from norton.graph.channels import ChannelTracer, located_in
from norton.graph.deciding import CALLS
from norton.graph.layers import is_leaf

# By which code may call layers without their names.
_ANY = {"getattr", "children", "named_children", "modules", "named_modules", "_modules", "get_submodule"}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential, nn.ParameterList, nn.ParameterDict)


def freeze_uncalled(tracer: ChannelTracer, graphs: Sequence[fx.Graph]) -> None:
    """Keep the channels that a layer could meet which none of these records calls."""
    callers = {name: unit for unit in uncalled(tracer.net, graphs) for name in _callers(tracer.net, unit, graphs)}
    for graph in graphs if callers else ():
        for node in graph.nodes:
            for arg in node.all_input_nodes:
                if (unit := _held_by(callers, arg, node)) is None:
                    continue
                reason = f"{unit}: this example does not call it, though another may; give an example= that does"
                for x in located_in(tracer.located[arg]):
                    tracer.wiring.freeze(x.ids.flatten().numpy(), reason)
                tracer.freeze_counts(node, [arg])


def _held_by(callers: Mapping[str, str], arg: fx.Node, node: fx.Node) -> str | None:
    """What the module could call that has what one node gives to another in its hands, of those that could."""
    made, taken = (one.meta.get(CALLS, ()) for one in (arg, node))
    for calls, others in ((made, taken), (taken, made)):
        for depth, (name, _) in enumerate(calls):
            # What is made and taken within one call of a module inside of it, its code never sees.
            if name in callers and (calls[: depth + 2] != others[: depth + 2] or len(calls) == depth + 1):
                return callers[name]
    return None


def uncalled(net: nn.Module, graphs: Sequence[fx.Graph]) -> list[str]:
    """The modules with parameters of which no record calls or reads anything, the outermost ones; and parameters."""
    leaves = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module"}
    read = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "get_attr"}
    read |= {owner for name in read if is_leaf(net.get_submodule(owner := name.rpartition(".")[0]))}
    called = {part for name in (leaves | read | _running(graphs)) for part in _prefixes(name)}
    found: dict[str, None] = {}
    for name, _ in net.named_parameters():
        owner = name.rpartition(".")[0]
        if name in read or owner in read or not leaves.isdisjoint(_prefixes(name)):
            continue
        if any(isinstance(net.get_submodule(part), torch.jit.ScriptModule) for part in _prefixes(owner) if part):
            continue  # whose calls are not seen
        found[next(part for part in _prefixes(name) if part not in called)] = None
    return list(found)


def _prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` of `a.b.c`."""
    return (name[:end] for end in [*(at for at, sign in enumerate(name) if sign == "."), len(name)])


def _running(graphs: Sequence[fx.Graph]) -> set[str]:
    """The modules whose forward pass runs."""
    return {name for graph in graphs for node in graph.nodes for name, _ in node.meta.get(CALLS, ())}


def _callers(net: nn.Module, unit: str, graphs: Sequence[fx.Graph]) -> list[str]:
    """The modules around a layer whose forward pass runs, and whose code may call it."""
    around = ["", *_prefixes(unit)][:-1]
    held_by = next(
        name for name in reversed(around) if not isinstance(net.get_submodule(name), _CONTAINERS) or not name
    )
    key = unit.removeprefix(f"{held_by}." if held_by else "").partition(".")[0]
    running = _running(graphs)
    names = {name: names_in_forward(net.get_submodule(name)) for name in around if name in running}
    return [name for name in names if key in names[name] or (name == held_by and names[name] & _ANY)]


def names_in_forward(module: nn.Module) -> set[str]:
    """The names in the code of a module's forward pass, and of all methods of it that this names."""
    found: set[str] = set()
    left: list[Any] = [vars(module).get("forward", type(module).forward)]
    seen = set()
    while left:
        method = left.pop()
        method = inspect.unwrap(getattr(method, "fget", None) or getattr(method, "__func__", method))
        if id(method) in seen or not isinstance(code := getattr(method, "__code__", None), CodeType):
            continue
        seen.add(id(method))
        new = _names(code) - found
        found |= new
        if type(module).__module__.partition(".")[0] == "torch":
            continue
        left += [vars(kind)[name] for kind in type(module).__mro__ for name in new if name in vars(kind)]
    return found


def _names(code: CodeType) -> set[str]:
    """The names that code takes, with functions inside of it."""
    inside = (_names(part) for part in code.co_consts if isinstance(part, CodeType))
    return {*code.co_names}.union(*inside)
