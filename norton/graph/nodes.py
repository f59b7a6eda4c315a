"""What the nodes of a recorded forward pass hold: their names, their places, arguments and values."""

from typing import Any

from torch import Tensor, fx

# Numbers and other facts about a tensor that stay the same whatever its number of channels is.
FACTS = {
    *("ndim", "dim", "ndimension", "dtype", "device", "layout", "requires_grad", "is_leaf", "is_contiguous"),
    *("is_cuda", "is_cpu", "is_mps", "is_meta", "is_sparse", "is_quantized", "is_floating_point", "is_complex"),
    *("is_tensor", "get_device", "element_size", "itemsize"),
}
DECIDED = "decided"  # set where Python took a number that a node computes, such as a size in an `if`
VALUE = "value"  # where `norton.graph.meta` leaves what a node computes, among its notes (`node.meta`)


def name_of(node: fx.Node) -> str:
    """The name of the function, method or attribute of a node."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def asked_of(node: fx.Node) -> str:
    """The name of what a node asks a tensor for: that of a method or function, or of an attribute."""
    return node.args[1] if name_of(node) == "getattr" and isinstance(node.args[1], str) else name_of(node)


def reads_facts(node: fx.Node) -> bool:
    """Whether a node asks a weight for nothing that depends on channels: facts, or the size of its kernel."""
    asked, dims = asked_of(node), value_of(first_argument(node)).dim()
    if asked == "size" and len(node.args) == 2 and isinstance(node.args[1], int):
        return node.args[1] % dims > 1
    if asked not in ("size", "shape"):
        return asked in FACTS
    parts: list[Any] = [user.args[1] if name_of(user) == "getitem" else None for user in node.users]
    if not all(isinstance(part, int | slice) for part in parts):
        return False
    taken = [range(dims)[part] for part in parts]
    return all(dim > 1 for part in taken for dim in ([part] if isinstance(part, int) else part))


def place_of(node: fx.Node) -> str:
    """What a node does and in which layer, for people."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    return f"{name_of(node) or node.target} in {path or 'the forward pass'}"


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument, by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def first_argument(node: fx.Node) -> Any:
    """The first argument, by position, as `input`, or else the first that has a name."""
    return argument(node, 0, "input", next(iter(node.kwargs.values()), None))


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
