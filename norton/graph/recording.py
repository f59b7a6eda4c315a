"""Recording a forward pass with torch.fx, for what runs the record again: deploying; see `norton.graph.execution`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from norton.common.errors import InputError, first_line
from norton.graph.layers import is_decomposed, torch_kind
from norton.graph.lines import line_of

HOW_TO_DECLARE = "or give the network a method wiring() that declares its channel axes, see norton/models/resnet.py"


class _Tracer(fx.Tracer):
    """fx's tracer; `where`: the module in which it failed.

    Leaves are torch's layers, those derived from them that only set defaults, decomposed and packed ones.
    """

    where: str | None = None
    proxy_buffer_attributes = True  # what is computed of a buffer is recorded, rather than a constant

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_leaf(module)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.where = self.where or self.path_of_module(m)
            raise


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is recorded as one operation: torch's own layers, decomposed and packed ones."""
    if is_decomposed(module) or getattr(module, "traced_whole", False):
        return True
    kind = torch_kind(module)
    return kind is not None and not issubclass(kind, nn.Sequential)


def trace(net: nn.Module) -> fx.Graph:
    """The operations of a network's forward pass, in the mode that it is in, with decomposed layers as one each.

    Raises InputError, naming the place, for a network that torch.fx cannot trace.
    """
    if isinstance(net, nn.Conv2d | nn.Linear) or is_decomposed(net):
        raise InputError(f"the network is one {type(net).__name__}, whose channels are its input and output")
    tracer = _Tracer()
    try:
        with _unchecked(net):
            return tracer.trace(net)
    except Exception as error:  # whatever the network's own code raises when it meets a symbolic tensor
        place = line_of(error) or "its forward pass"
        layer = f"layer {tracer.where}, " if tracer.where else ""
        mode = "" if net.training else " in evaluation mode"
        raise InputError(
            f"{type(net).__name__} cannot be traced{mode}: {layer}{place}: {first_line(error)}; make its forward pass "
            f"free of decisions about values and assignments into tensors, {HOW_TO_DECLARE}"
        ) from None


@contextmanager
def _unchecked(net: nn.Module) -> Iterator[None]:
    """Let norms with a forward pass of their own call torch's, which checks a number of dimensions that fx lacks."""
    norms = [layer for layer in nn.Module.modules(net) if isinstance(layer, _BatchNorm) and torch_kind(layer) is None]
    for layer in norms:
        layer._check_input_dim = lambda images: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in norms:
            del layer._check_input_dim
