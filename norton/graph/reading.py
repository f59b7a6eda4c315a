"""Which weights a network reads itself, rather than by calling their layers."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from norton.common.errors import InputError
from norton.graph.copies import replace_
from norton.graph.inputs import Example, candidate_inputs
from norton.graph.layers import ELEMENTWISE_LAYERS, NORM_LAYERS
from norton.graph.lines import running_line, shown
from norton.graph.meta import at_inputs, on_meta
from norton.graph.nodes import holds_tensor


def weights_read(net: nn.Module, layers: Mapping[str, nn.Module], example: Example | None = None) -> dict[str, str]:
    """Layer → the line that reads its weight, for the layers of which something other than their call does.

    Such a layer has no other to take its place: the network computes with its weight (attention that calls functions,
    penalties), another layer shares it, or it is called by a reference that cannot be replaced, such as that of a
    function.  layers: those asked for, by name.

    The forward pass is run once in training and once in evaluation mode, without values.  There is a stand-in in the
    place of each layer, and whatever takes its weight while the stand-in does not run is noted.  Of a network that
    cannot be run so, nothing is known.
    """
    if isinstance(net, tuple(map(type, layers.values()))):
        return {}  # the network is that layer
    copied, reader = on_meta(net), _Reader()
    stand_ins = {}
    for name, layer in layers.items():
        own = copied.get_submodule(name)
        reader.names.setdefault(id(layer.weight), set()).add(name)  # which functions hold that copying does not reach
        reader.names.setdefault(id(own.weight), set()).add(name)
        if own not in stand_ins:
            stand_ins[own] = copy.copy(own)
            _watch_(stand_ins[own], reader.running)
        reader.stand_ins[name] = stand_ins[own]
    for layer in nn.Module.modules(copied):
        if type(layer) in (*NORM_LAYERS, *ELEMENTWISE_LAYERS):  # shapes pass, and without values they take long
            layer.forward = _same  # type: ignore[method-assign]
    replace_(copied, stand_ins)
    candidates = [inputs.to("meta") for inputs in candidate_inputs(net, example)]
    for training in (True, False):
        try:
            with reader:
                inputs, _ = next(at_inputs(copied.train(training), candidates, lambda inputs: inputs.call(copied)))
            candidates = [inputs]
        except InputError:
            continue
    return reader.found


def _same(input: Any) -> Any:
    return input


def _watch_(layer: nn.Module, running: Counter[nn.Module]) -> None:
    """Let a layer count in `running` while it runs."""
    forward = layer.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        running[layer] += 1
        try:
            return forward(*args, **kwargs)
        finally:
            running[layer] -= 1

    layer.forward = counted  # type: ignore[method-assign]


class _Reader(TorchFunctionMode):
    """Notes what takes weights.

    names: identity of a weight → the layers that have it.  stand_ins: by layer.  found: layer → the first line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[int, set[str]] = {}
        self.stand_ins: dict[str, nn.Module] = {}
        self.running: Counter[nn.Module] = Counter()
        self.found: dict[str, str] = {}

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        try:
            result = func(*args, **(kwargs or {}))
        except Exception:  # a function may hold a weight that copying did not reach, a network tensors that it made
            self.note((args, kwargs))
            args, kwargs = tree_map(lambda x: x.to("meta") if isinstance(x, torch.Tensor) else x, (args, kwargs))
            return func(*args, **(kwargs or {}))
        if holds_tensor(result):  # else it asks for the type or size alone
            self.note((args, kwargs))
        return result

    def note(self, arguments: Any) -> None:
        for value in tree_leaves(arguments):
            for name in self.names.get(id(value), ()):
                if not self.running[self.stand_ins[name]]:
                    self.found.setdefault(name, shown(running_line()))
