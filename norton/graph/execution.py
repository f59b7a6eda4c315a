"""Recording a forward pass by running it: the operations as they happen, with what they give.

The network's own code runs, on tensors without values where that suffices, so that nothing in it has to be symbolic.
Sizes are numbers that remember which tensor they are of, so that what is computed of them is recorded too.  The record
is a `torch.fx.Graph` with one node for each layer that is called, for each operation outside of layers, and for each
number that comes of a size; a node holds what it gave, see `norton.graph.nodes.value_of`.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from norton.graph.deciding import CALLS, TOLD, indexes_by_values, takes_values
from norton.graph.layers import is_leaf
from norton.graph.lines import running_line
from norton.graph.nodes import READ, UNSEEN, VALUE, Unknown, first_by_position, name_of, parts_of
from norton.graph.sizes import Number, Real, Recorded, einops_without_memory, plain
from norton.graph.weight_norms import computes_weight

# What Python asks a tensor that says nothing of its values or sizes.
_DESCRIBING = {
    *("dtype", "device", "layout", "dim", "ndim", "ndimension", "requires_grad", "grad", "grad_fn", "is_leaf", "names"),
    *("is_cuda", "is_cpu", "is_meta", "is_mkldnn", "is_mps", "is_xpu", "is_sparse", "is_quantized", "is_nested"),
    *("is_floating_point", "is_complex", "is_contiguous", "is_inference", "get_device", "element_size", "itemsize"),
    *("stride", "storage_offset", "data_ptr", "has_names", "retains_grad", "is_shared", "is_pinned", "type"),
}
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
# Operators that Python calls on their second operand, which here is the first argument.
_OF_REVERSED = {f"r{name}": name for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")}
_OF_REVERSED |= {"rdiv": "div", "rand": "and", "ror": "or", "rxor": "xor"}
LINE = "line"  # where the network's code asks for an operation: (file, number), among the notes of its node


@torch.no_grad()
def record(
    net: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None = None,
    decided: Sequence[Any] = (),
) -> fx.Graph:
    """The operations of a forward pass on these arguments, in the mode that the network is in.

    decided: what Python is told where it takes values of tensors, in this order, instead of what they are; so that a
    network whose values have changed takes the same way again, see `norton.graph.deciding.values_decided`.

    Raises whatever the network's own code raises; the error then has the attributes `place`, the layer it arose in,
    and `graph`, what was recorded before it.
    """
    recorder = _Recorder(net, decided)
    device = next((tensor.device for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)), "cpu")
    with recorder.watching(), torch.device(device), einops_without_memory(), _PastFunctions(), recorder:
        for value in tree_leaves((args, kwargs)):
            recorder.add_input(value)
        try:
            output = net(*args, **(kwargs or {}))
        except Exception as error:
            error.place, error.graph = recorder.place, recorder.graph  # type: ignore[attr-defined]
            raise
    recorder.graph.output(recorder.outputs(output)).meta[VALUE] = None
    return recorder.graph


class _Recorder(TorchFunctionMode):
    """Makes a node of each operation on tensors outside of leaves, and of each leaf."""

    def __init__(self, net: nn.Module, decided: Sequence[Any] = ()):
        super().__init__()
        self.net, self.graph, self.decided = net, fx.Graph(), iter(decided)
        self.took_values = False  # whether Python has taken a tensor's values
        self.names = {id(tensor): name for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
        self.nodes: dict[int, fx.Node] = {}  # id of a tensor → the node that gave it last
        self.held: list[Tensor] = []  # so that no other tensor takes the id of one
        self.path: list[str] = []  # the modules whose forward pass runs, outermost first
        self.calls: list[tuple[str, int]] = []  # these, each with the number of its call
        self.called = 0
        self.inside = 0  # of how many leaves

    @property
    def place(self) -> str:
        """The module whose forward pass runs."""
        return self.path[-1] if self.path else ""

    # What the network does

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name, given = kwargs or {}, _name(func), args
        if not self.inside and indexes_by_values(name, args) and (index := next(self.decided, None)) is not None:
            given = (args[0], index, *args[2:])
        # Torch's own code compares sizes, which decides nothing.
        args_of_torch, kwargs_of_torch = (fx.node.map_aggregate(part, plain) for part in (given, kwargs))
        shortcut = _normalised if func is F.batch_norm and args and args[0].is_meta else func
        result = shortcut(*args_of_torch, **kwargs_of_torch)
        name = "vmap" if _is_transformed(result, args) else name
        if self.inside:
            return result
        if not any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs))):
            if isinstance(result, Tensor):
                self.give(self.add("call_method", name, args, kwargs, result), result)
            return result
        if name in ("shape", "size"):
            return self.sized(name, args, kwargs, result)
        if name == "numel":
            return self.number(result, "call_method", name, args, kwargs)
        if takes_values(name, args, result):
            return self.told(name, args, kwargs, result)
        if name == "setitem":
            node = self.add("call_method", name, args, kwargs, args[0])
            node.meta[TOLD] = indexes_by_values(name, args)
            self.hold(args[0], node)
        elif any(isinstance(value, Tensor) for value in tree_leaves(result)):
            op, target = ("call_function", own_operation(func)) if _is_own(func) else ("call_method", name)
            self.give(self.add(op, target, args, kwargs, result), result)
        elif name not in _DESCRIBING:
            self.read(name, args, kwargs)
        return result

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on all modules, which tell where an operation happens."""
        handles = []
        for name, module in self.net.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks, and shows what it computes as scripted code does
            enter, leave = self._hooks(name, module)
            first = computes_weight(module)  # its weight is computed by a hook, as a part of it
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=first))
            handles.append(module.register_forward_hook(leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hooks(self, name: str, module: nn.Module) -> tuple[Callable, Callable]:
        leaf = bool(name) and is_leaf(module) and not module._forward_hooks  # which may change what it gives

        def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.path.append(name)
            self.called += 1
            self.calls.append((name, self.called))
            self.inside += leaf
            if self.took_values and any(isinstance(value, int | float) for value in tree_leaves((args, kwargs))):
                self.add("call_method", "argument", (), {}, None).meta[TOLD] = True  # which may be such a value

        def leave(module: nn.Module, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
            self.inside -= leaf
            if leaf and not self.inside:
                self.give(self.add("call_module", name, args, kwargs, result), result)
            self.path.pop()
            self.calls.pop()

        return enter, leave

    # What is recorded

    def read(self, name: str, args: Any, kwargs: Any) -> None:
        """Python takes something that tensors hold, or their length, which it may decide by."""
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and id(value) in self.nodes:
                self.nodes[id(value)].meta.setdefault(READ, set()).add(name)

    def add(self, op: str, target: Any, args: Any, kwargs: Any, value: Any) -> fx.Node:
        if op == "call_method":
            args, kwargs = first_by_position(args, kwargs)
        args, kwargs = (fx.node.map_aggregate(given, self.argument) for given in (tuple(args), dict(kwargs)))
        node = self.graph.create_node(op, target, args, kwargs)
        node.meta |= {VALUE: value, LINE: running_line(), "nn_module_stack": {self.place: (self.place, None)}}
        node.meta[CALLS] = tuple(self.calls)
        return node

    def add_input(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.hold(value, self.add("placeholder", f"input_{len(self.nodes)}", (), {}, value))

    def argument(self, value: Any) -> Any:
        """A value as an argument of a node."""
        if isinstance(value, Recorded) and value.recorder is not self:
            return plain(value)  # of an earlier record, which the network's code remembered
        if isinstance(value, Recorded | _Node):
            return value.node
        if not isinstance(value, Tensor):
            return _known(value)
        while is_functorch_wrapped_tensor(value):
            value = get_unwrapped(value)
        if id(value) not in self.nodes:  # a parameter, a buffer, or a tensor that no recorded operation made
            self.hold(value, self.add("get_attr", self.names.get(id(value), ""), (), {}, value))
        return self.nodes[id(value)]

    def give(self, node: fx.Node, result: Any) -> None:
        """A node gives tensors: one, or several, each of which then is a node of its own."""
        if isinstance(result, Tensor):
            self.hold(result, node)
        elif isinstance(result, Mapping):
            for key, part in result.items():
                self.give(self.add("call_method", "getitem", (_Node(node), key), {}, part), part)
        elif isinstance(result, list | tuple):
            for place, part in enumerate(result):
                if isinstance(part, Tensor | list | tuple):
                    self.give(self.add("call_method", "getitem", (_Node(node), place), {}, part), part)

    def hold(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = node
        self.held.append(tensor)

    def sized(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
        """A size, or all sizes, of a tensor as numbers that remember it."""
        if isinstance(result, int):
            return self.number(result, "call_method", "size", args, kwargs)
        node = _Node(self.add("call_method", "size", args[:1], {}, result))
        return torch.Size(
            [self.number(n, "call_method", "getitem", (node, place), {}) for place, n in enumerate(result)]
        )

    def told(self, name: str, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
        """What Python takes of the values of tensors, or what has a size that depends on them."""
        self.took_values = True
        if not any(isinstance(value, Tensor) for value in tree_leaves(result)):
            self.read(name, args, kwargs)
        if name != "getitem":
            result = next(self.decided, result)
        node = self.add("call_method", name, args, kwargs, result)
        node.meta[TOLD] = True
        self.give(node, result)
        return result

    def number(self, value: Any, op: str, target: Any, args: Any, kwargs: Any) -> Any:
        """A number that is the result of an operation."""
        found: Any = Number(value) if isinstance(value, int) else Real(value) if isinstance(value, float) else value
        if isinstance(found, Recorded):
            found.recorder, found.make = self, partial(self.add, op, target, args, kwargs, value)
        return found

    def outputs(self, output: Any) -> list[fx.Node]:
        """The nodes of what a network returns, and of all tensors that no recorded operation takes any more.

        Somebody may take those in a way that is not seen.
        """
        returned = [self.nodes[id(value)] for value in parts_of(output) if id(value) in self.nodes]
        unused = [node for node in self.graph.nodes if not node.users and isinstance(node.meta[VALUE], Tensor)]
        unused = [node for node in unused if node.target != "getitem" or isinstance(node.args[0].meta[VALUE], Tensor)]
        unused = [node for node in unused if not name_of(node).endswith("_")]  # which changed a tensor in place
        for node in set(unused).difference(returned):
            node.meta[UNSEEN] = True
        return list(dict.fromkeys([*returned, *unused]))


def _normalised(input: Tensor, *entries: Tensor | None, **more: Any) -> Tensor:
    """What BatchNorm gives of a tensor without values, which takes torch milliseconds to find out."""
    for tensor in (*entries, *more.values()):
        if isinstance(tensor, Tensor) and tensor.shape != input.shape[1:2]:
            raise RuntimeError(f"a norm has {len(tensor)} entries for {input.shape[1]} channels")
    return torch.empty_like(input)


class _PastFunctions(TorchDispatchMode):
    """Calls again, as a function that a recorder sees, what scripted code computes without that it calls any.

    While one of torch's functions runs no recorder sees another one.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def _is_transformed(*values: Any) -> bool:
    """Whether tensors stand for others, with other dimensions, as inside of `torch.vmap`."""
    return any(isinstance(value, Tensor) and is_functorch_wrapped_tensor(value) for value in tree_leaves(values))


def _known(value: Any) -> Any:
    """What a record holds of an argument that is no tensor; of NumPy's its numbers, of large arrays their sum."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return value.tolist() if value.size <= 16 else (*value.shape, zlib.crc32(value.tobytes()))
    known = value is None or value is ... or isinstance(value, (*fx.node.base_types, slice))
    return value if known else Unknown(type(value))


class _Node:
    """A node as an argument of another one."""

    def __init__(self, node: fx.Node):
        self.node = node


def _is_own(func: Any) -> bool:
    """Whether a function is none of torch's, whatever its name says: a user's, or a custom operator."""
    if isinstance(func, _OPERATORS):
        return getattr(own_operation(func), "_qualified_op_name", "aten").partition("::")[0] not in ("aten", "prims")
    package = (getattr(func, "__module__", None) or "torch").partition(".")[0]
    return package not in ("torch", "_operator", "builtins")


def own_operation(func: Any) -> Any:
    """A function as records name it: a custom operator, which has several forms, by what they have in common."""
    func = getattr(func, "_opoverload", func)  # of `torch.library.custom_op`
    return func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func


def _name(func: Any) -> str:
    """The name of a torch function, method, operator or attribute."""
    if isinstance(func, torch._ops.OpOverload) and not _is_own(func):
        func = own_operation(func)  # `softplus.default`
    name = getattr(func, "__name__", str(func))
    if name == "__get__":
        return func.__self__.__name__
    if name.startswith("__"):
        stripped = name.strip("_")
        return _OF_REVERSED.get(stripped, stripped)
    return name.removeprefix("special_")
