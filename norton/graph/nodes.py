"""What the nodes of a recorded forward pass hold: their names, their places, arguments and values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

DECIDED = "decided"  # set where Python took a number that a node computes, such as a size in an `if`
READ = "read"  # the functions by which Python took what a node computes, such as `item` or `len`
UNSEEN = "unseen"  # set where no recorded operation takes a tensor, and the network does not return it
VALUE = "value"  # where `norton.graph.execution` leaves what a node computes, among its notes (`node.meta`)


def name_of(node: fx.Node) -> str:
    """The name of the function, method or attribute of a node."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def reads_kernel_size(node: fx.Node) -> bool:
    """Whether a node asks a weight for nothing but sizes of its kernel, which do not depend on channels."""
    if name_of(node) != "size":
        return False
    dims = value_of(first_argument(node)).dim()
    if len(node.args) == 2 and isinstance(node.args[1], int):
        return node.args[1] % dims > 1
    return all(name_of(user) == "getitem" and user.args[1] % dims > 1 for user in node.users)


def place_of(node: fx.Node) -> str:
    """What a node does and in which layer, for people."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{name_of(node) or node.target} in {path or 'the forward pass'}"


@dataclass(frozen=True)
class Unknown:
    """An object that is an argument of a node, and of which no more than the type is recorded."""

    kind: type


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, by position or by name; torch also calls a dimension an axis, as NumPy does."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, node.kwargs.get("axis", default) if name == "dim" else default)


def first_argument(node: fx.Node) -> Any:
    """The first argument, by position, as `input`, or else the first that has a name."""
    return argument(node, 0, "input", next(iter(node.kwargs.values()), None))


def first_by_position(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Arguments of one of torch's functions, of which the first is given by position, as to a method."""
    name = next((name for name in ("input", "tensors", "tensor", "self") if name in kwargs), None)
    if args or name is None or "condition" in kwargs:
        return args, kwargs
    return (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}


def value_of(node: fx.Node) -> Any:
    """What a node computes, on the meta device."""
    return node.meta[VALUE]


def holds_tensor(value: Any) -> bool:
    """Whether a value is a tensor, or has one in its lists, tuples and dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(map(holds_tensor, value))
    return isinstance(value, Tensor)


def depending_on_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that compute something of the network's inputs, rather than of parameters alone."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def makes_tensor(node: fx.Node) -> bool:
    """Whether a node makes a tensor of numbers alone, such as `torch.full` or `torch.arange`."""
    if node.op != "call_method" or not isinstance(value_of(node), Tensor):
        return False
    return not any(holds_tensor(value_of(arg)) for arg in node.all_input_nodes)


def parts_of(output: Any) -> list[Any]:
    """All that a network gives, in lists, tuples, dictionaries and objects of its own, such as data classes."""
    found: dict[int, Any] = {}
    left = tree_leaves(output)
    while left:
        part = left.pop()
        if id(part) in found:
            continue
        found[id(part)] = part
        if not isinstance(part, Tensor | nn.Module | type):
            held = [*getattr(part, "__dict__", ()), *getattr(type(part), "__slots__", ())]
            left += [leaf for name in held for leaf in tree_leaves(getattr(part, name, None))]
    return list(found.values())
