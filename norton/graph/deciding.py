"""Recording networks that decide by sizes: what passes is known on the meta device while it is recorded.

Numbers then are numbers wherever Python asks for one (`if`, `range`, `math.ceil`, unpacking), and the node that they
come from is marked: a decision holds for images of that size, and must not depend on the number of channels.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.common.errors import InputError
from norton.graph.layers import ELEMENTWISE_LAYERS, NORM_LAYERS
from norton.graph.nodes import DECIDED, VALUE, holds_tensor
from norton.graph.recording import LayerTracer, recorded


def traces_at(net: nn.Module, candidates: list[tuple[int, ...]]) -> dict[tuple[int, ...], fx.Graph]:
    """Size → the operations of a network on images of that size, for those of the candidates that it takes.

    The network is on the meta device, and the nodes hold what they compute.  Raises InputError, naming the place, if
    it can be recorded at none.
    """
    found, problems = {}, []
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    for size in candidates:
        try:
            with torch.no_grad(), torch.device("meta"):
                found[size] = recorded(net, _KnowingTracer(torch.empty(2, *size, dtype=dtype)))
        except InputError as error:
            problems.append(error)
    if not found:
        raise problems[0]
    return found


class _KnownProxy(fx.Proxy):
    """What stands for a tensor or a number whose value on the meta device is known."""

    def __getattr__(self, k: str) -> "_KnownAttribute":
        return _KnownAttribute(self, k)

    def _number(self) -> Any:
        value = self.node.meta[VALUE]
        if holds_tensor(value):
            raise fx.proxy.TraceError("symbolically traced variables cannot be used as inputs to control flow")
        self.node.meta[DECIDED] = True
        return value

    def __bool__(self) -> bool:
        return bool(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __index__(self) -> int:
        return operator.index(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __len__(self) -> int:
        return len(self._parts())

    def __iter__(self) -> Iterator[Any]:
        return iter([self[place] for place in range(len(self._parts()))])

    def _parts(self) -> tuple | list:
        value = self.node.meta[VALUE]
        if not isinstance(value, tuple | list):
            raise fx.proxy.TraceError("symbolically traced tensors cannot be iterated")
        return value


class _KnownAttribute(fx.proxy.Attribute, _KnownProxy):
    """An attribute of one, or a method before it is called."""


class _KnowingTracer(LayerTracer):
    """A tracer that computes what it records, on the meta device."""

    def __init__(self, images: Tensor):
        super().__init__()
        self.images, self.computing = images, False

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _KnownProxy(node, self)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        self.computing = True  # torch.fx has patched nn.Module, which would record this, too
        try:
            node.meta[VALUE] = self._value(node)
        finally:
            self.computing = False
        return node

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        return forward(*args, **kwargs) if self.computing else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = (fx.node.map_arg(given, lambda other: other.meta[VALUE]) for given in (node.args, node.kwargs))
        target: Any = node.target
        if node.op == "placeholder":
            return self.images if not any(n.op == "placeholder" for n in self._before(node)) else next(iter(args), None)
        if node.op == "output":
            return args[0]
        if node.op == "get_attr":
            value = operator.attrgetter(target)(self.root)
            return value.to("meta") if isinstance(value, Tensor) else value
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_function":
            return target(*args, **kwargs)
        layer = self.root.get_submodule(target)
        # Shapes pass through these, and torch takes milliseconds for a BatchNorm without values.
        return args[0] if isinstance(layer, (*NORM_LAYERS, *ELEMENTWISE_LAYERS)) and args else layer(*args, **kwargs)

    def _before(self, node: fx.Node) -> list[fx.Node]:
        return [other for other in self.graph.nodes if other is not node]
