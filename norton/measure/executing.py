"""What a network executes, operation by operation and layer by layer, on tensors without values where that works."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from norton.common.errors import InputError, first_line
from norton.graph.copies import copied
from norton.graph.inputs import Inputs
from norton.graph.layers import is_decomposed, set_form_
from norton.graph.meta import on_meta

aten = torch.ops.aten


def without_values(net: nn.Module, inputs: Inputs, run: Callable[[nn.Module, Inputs], Any]) -> Any:
    """What `run` finds on a copy of a network on the meta device, or on the CPU where the network asks for values.

    The copy is in evaluation mode, its decomposed layers in their published form.  Raises InputError for a network that
    does not take the inputs, and for one that has no weights yet.
    """
    if lazy := [name for name, p in net.named_parameters() if is_lazy(p)]:
        raise InputError(f"{lazy[0]} has no size before the network runs once; run it on an input, then count it")
    counted = set_form_(on_meta(net), "factored").eval()
    try:
        with torch.no_grad(), _Shapes():
            return run(counted, inputs.to("meta"))
    except Exception:  # whatever the network's own code raises without values
        pass
    try:
        with torch.no_grad(), _attention_step_by_step():
            return run(set_form_(copied(net), "factored").eval().cpu(), inputs.to("cpu"))
    except Exception as error:
        given = ", ".join("×".join(map(str, x.shape)) for x in inputs.tensors)
        raise InputError(f"{type(net).__name__} cannot take an input of size {given}: {first_line(error)}") from None


@contextmanager
def _attention_step_by_step() -> Iterator[None]:
    """Without the operation that torch has for all of `nn.MultiheadAttention`; without values it does without."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Shapes(TorchDispatchMode):
    """Lets tensors without values meet those that a network made or kept elsewhere, and spares what is slow on meta."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.native_batch_norm.default and args[0].is_meta:  # torch takes milliseconds for one
            x = args[0]
            return x.new_empty(x.shape), x.new_empty(0), x.new_empty(0)
        try:
            return func(*args, **kwargs)
        except Exception:
            without = {x.is_meta for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            if without != {True, False}:
                raise
        args, kwargs = _moved((args, kwargs), "meta")
        return func(*args, **kwargs)


def _moved(values: Any, device: str) -> Any:
    return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, values)


def executed(
    net: nn.Module,
    inputs: Inputs,
    operations: Mapping[Any, Callable[[tuple, Any], int]],
    layer: Callable[[nn.Module, Tensor, Tensor], int],
) -> dict[str, int]:
    """Run a network and count: row → count, in the order in which the rows are first run; see `rows`.

    operations: operation of torch → what an execution of it counts, given its arguments and result.  layer: what a call
    of a layer counts besides, given the layer, its first input and its output.
    """
    running = _Running(net, layer)
    with running, _Operations(operations, running.add):
        net(*inputs.args, **inputs.kwargs)
    return running.by_row


class _Running:
    """Knows which row's code is running, while this is entered, and counts for it."""

    def __init__(self, net: nn.Module, layer: Callable[[nn.Module, Tensor, Tensor], int]):
        self.by_row: dict[str, int] = {}
        self._layer, self._rows = layer, rows(net)
        self._stack = [""]
        self._thread = threading.get_ident()  # torch's hooks for all modules hear of those of other threads too

    def __enter__(self) -> None:
        begin = register_module_forward_pre_hook(self._begin)
        self._hooks = begin, register_module_forward_hook(self._end, with_kwargs=True, always_call=True)

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def add(self, count: int) -> None:
        row = self._stack[-1]
        self.by_row[row] = self.by_row.get(row, 0) + count

    def _begin(self, module: nn.Module, args: tuple) -> None:
        if threading.get_ident() == self._thread:
            # A module that is registered nowhere, as in a plain list, belongs to the one that calls it.
            self._stack.append(self._rows.get(module, self._stack[-1]))
            self.add(0)

    def _end(self, module: nn.Module, args: tuple, *rest: Any) -> None:
        if threading.get_ident() == self._thread:
            *kwargs, output = rest  # torch leaves the keyword arguments out where the module raised
            given = next((x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)), None)
            if given is not None and isinstance(output, Tensor):
                self.add(self._layer(module, given, output))
            self._stack.pop()


class _Operations(TorchDispatchMode):
    """Hears of each operation that is executed."""

    def __init__(self, operations: Mapping[Any, Callable[[tuple, Any], int]], add: Callable[[int], None]):
        super().__init__()
        self._operations, self._add = operations, add

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if _made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        if (count := self._operations.get(func.overloadpacket)) is not None:
            self._add(count(args, result))
        return result


@cache
def _made_of_others(func: Any) -> bool:
    """Such operations arrive whole where a network enters inference mode, else as their parts."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


def rows(net: nn.Module) -> dict[nn.Module, str]:
    """Module → the name of the row that it is counted in.

    A decomposed or parametrised layer is a row as a whole, any other module with what its own code executes.
    """
    found: dict[nn.Module, str] = {}
    whole: list[str] = []
    for name, module in net.named_modules():
        within = next((outer for outer in whole if not outer or name.startswith(f"{outer}.")), None)
        if within is None and _is_whole(module):
            whole.append(name)
        found[module] = name if within is None else within
    return found


def is_layer(module: nn.Module) -> bool:
    """Whether a module is a layer, rather than made of layers."""
    return _is_whole(module) or not any(True for _ in nn.Module.children(module))


def _is_whole(module: nn.Module) -> bool:
    return is_decomposed(module) or is_parametrized(module)
