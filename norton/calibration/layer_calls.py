"""Which layers a forward pass calls, in which order, who reads them, and how much is held between them."""

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from norton.graph.deciding import sized_by_values
from norton.graph.declarations import declaration_of
from norton.graph.inputs import Inputs
from norton.graph.layers import is_decomposed, is_norm

# Operations on a tensor that compute nothing of its values.
_ABOUT = {"__get__", "size", "dim", "ndimension", "numel", "stride", "is_floating_point", "is_contiguous", "data_ptr"}


@dataclass
class LayerCalls:
    """The forward pass of one image.

    order: the layers as they are called.  readers: layer → the layers that take its output directly, None for each
    other use of it.  held: bytes, the most at once.  loose: the layers that are called after the network has
    taken parts by values, such as the boxes that a detector finds, so that another network gives them others.
    """

    order: list[str] = field(default_factory=list)
    readers: dict[str, list[str | None]] = field(default_factory=dict)
    held: int = 0
    loose: set[str] = field(default_factory=set)

    @cached_property
    def first(self) -> dict[str, int]:
        """Layer → the place of its first call among all calls."""
        found: dict[str, int] = {}
        for place, name in enumerate(self.order):
            found.setdefault(name, place)
        return found

    @cached_property
    def repeated(self) -> set[str]:
        """The layers that are called several times."""
        return {name for name, times in Counter(self.order).items() if times > 1}


def layers_of(net: nn.Module) -> dict[str, nn.Module]:
    """The modules that compute as one: decomposed layers, and all without modules inside; normalisations with some."""
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        whole = is_decomposed(module) or getattr(module, "traced_whole", False) or declaration_of(module) is not None
        if module not in inside and name and (whole or is_norm(module) or not any(nn.Module.children(module))):
            found[name] = module
            inside.update(nn.Module.modules(module))
    return found


@torch.no_grad()
def record_calls(net: nn.Module, inputs: Inputs) -> LayerCalls:
    """Run a network on what it takes of one image, in the mode that it is in, and see which layers it calls."""
    recorder = _Recorder()
    handles = []
    for name, layer in layers_of(net).items():
        if isinstance(layer, torch.jit.ScriptModule):
            continue  # which takes no hooks
        handles.append(layer.register_forward_pre_hook(recorder.before(name), with_kwargs=True))
        handles.append(layer.register_forward_hook(recorder.after(name), with_kwargs=True))
    try:
        with recorder:
            output = inputs.map(Tensor.clone).call(net)
    finally:
        for handle in handles:
            handle.remove()
    for tensor in tree_leaves(output):
        recorder.uses(tensor, None)
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Sees each operation, and by hooks each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = LayerCalls()
        self.inside = 0  # of how many layers
        self.loose = False  # whether parts were taken by values
        self.outputs: dict[int, tuple[str, weakref.ref[Tensor]]] = {}  # id of a tensor → the layer that gave it
        self.alive: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if not self.inside and getattr(func, "__name__", "") not in _ABOUT:
            for value in tree_leaves((args, kwargs)):
                self.uses(value, None)
        name = getattr(func, "__name__", "").strip("_")
        self.loose |= not self.inside and bool(self.calls.order) and sized_by_values(name, args)
        result = func(*args, **(kwargs or {}))
        self.alive += [weakref.ref(value) for value in tree_leaves(result) if isinstance(value, Tensor)]
        return result

    def before(self, name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
            self.inside += 1
            if self.inside == 1:
                self.calls.order.append(name)
                if self.loose:
                    self.calls.loose.add(name)
                for value in tree_leaves((args, dict(kwargs))):
                    self.uses(value, name)
                self.measure()

        return hook

    def after(self, name: str) -> Callable:
        def hook(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
            self.inside -= 1
            if not self.inside and isinstance(output, Tensor):
                self.outputs[id(output)] = name, weakref.ref(output)
                self.calls.readers.setdefault(name, [])

        return hook

    def uses(self, value: Any, reader: str | None) -> None:
        """A layer, or something else, takes a value."""
        name, tensor = self.outputs.get(id(value), ("", None))
        if tensor is not None and tensor() is value:  # the id of a tensor that is gone may be another's
            self.calls.readers[name].append(reader)

    def measure(self) -> None:
        """How much is held now."""
        tensors = [(ref, tensor) for ref in self.alive if (tensor := ref()) is not None]
        self.alive = [ref for ref, _ in tensors]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for _, tensor in tensors}
        self.calls.held = max(self.calls.held, sum(storages.values()))
