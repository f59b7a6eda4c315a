"""MACs and parameters, in the convention of the published tables and in two others, by what a network executes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import thop
import torch
from thop.profile import register_hooks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.common.tables import ShownAsTable
from norton.graph.input_sizes import is_size, stated_size
from norton.graph.inputs import Example, Inputs, inputs_of, stated_inputs
from norton.graph.layers import is_decomposed, network_in
from norton.measure.executing import executed, is_layer, rows, without_values

CONVENTIONS = Registry("counting convention")  # name → (network in evaluation mode, inputs) → row → MACs


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image, or of what a module computes itself; params: all that it holds itself."""

    macs: int
    params: int


@dataclass(frozen=True, repr=False)
class Complexity(ShownAsTable):
    """Cost of a network for one image.

    macs: multiply-accumulates in the convention asked for.  params: all parameters.  params_printed: without the
    biases of decomposed layers, which the published tables leave out.  by_layer: name → cost, in forward order, then
    the layers that do not run.  What is computed or held outside of layers counts for the module that does so; the name
    of the network itself is "".
    """

    macs: int
    params: int
    params_printed: int
    by_layer: dict[str, LayerCost]
    convention: str

    def title(self) -> str:
        return f"{self.macs:,} MACs, {self.params:,} parameters (convention {self.convention})"

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer that costs anything."""
        return [
            {"layer": name or "(itself)", "MACs": cost.macs, "params": cost.params}
            for name, cost in self.by_layer.items()
            if cost.macs or cost.params
        ]

    def as_dict(self) -> dict:
        return asdict(self)


def complexity(
    net: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    example: Example | None = None,
    convention: str = "norton",
) -> Complexity:
    """Count a network for one image of `input_size` (channels, height, width); by default, the network's own size.

    The operations are counted that the network executes, without computing them unless it decides by values.

    example: what the network takes instead, counted as it is: a tensor, a tuple for several arguments, or a dict of
    arguments by name.

    convention: `norton` as published (convolutions with their bias additions, linear layers, matrix products,
    BatchNorm, ReLU, pooling modules), `macs` (convolutions, linear layers and matrix products alone), `thop` (that
    package as it is).
    """
    net = network_in(net)
    count = CONVENTIONS[convention]
    macs = without_values(net, inputs_for(net, example, input_size), count)
    held: dict[str, set[nn.Parameter]] = defaultdict(set)
    for module, row in rows(net).items():
        held[row].update(module.parameters(recurse=False))
    layers = {row for module, row in rows(net).items() if is_layer(module)}
    by_layer = {
        row: LayerCost(macs.get(row, 0), sum(p.numel() for p in held[row]))
        for row in dict.fromkeys((*macs, *held))
        if row in layers or macs.get(row) or held[row]
    }
    params = sum(p.numel() for p in net.parameters())
    biases = sum(m.bias.numel() for m in nn.Module.modules(net) if is_decomposed(m) and m.bias is not None)
    return Complexity(sum(macs.values()), params, params - biases, by_layer, convention)


def percent_removed(part: float, whole: float) -> float:
    """How much smaller `part` is than `whole`, in percent."""
    return 100 * (1 - part / whole)


def inputs_for(net: nn.Module, example: Example | None, input_size: Sequence[int] | None = None) -> Inputs:
    """What a network is counted for: an example or a size, or what the network states."""
    if example is not None and input_size is not None:
        raise InputError("both input_size and example are given; give one of them")
    if is_size(example):
        input_size = example
    elif example is not None:
        return inputs_of(example)
    if input_size is None and (stated := stated_inputs(net)) is not None:
        return stated
    size = input_size or stated_size(net)
    if size is None:
        raise InputError(
            f"{type(net).__name__} states no input size; pass input_size=(channels, height, width), or example="
        )
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    return Inputs((torch.zeros(1, *size, dtype=dtype),))


def _convolution(biased: bool, args: tuple, result: Tensor) -> int:
    """A transposed one multiplies each input with a filter, rather than adding up to each output."""
    x, weight, bias, transposed = *args[:3], args[6]
    macs = (x if transposed else result).numel() * weight[0].numel()
    return macs + result.numel() * (biased and bias is not None)


def _product(first: int, args: tuple, result: Tensor) -> int:
    return result.numel() * args[first].shape[-1]


def _attention(args: tuple, result: Any) -> int:
    query, key = args[0], args[1]
    return (query.numel() + result[0].numel()) * key.shape[-2]


def _recurrent(args: tuple, result: Any) -> int:
    """All steps and samples, times the weights of the inputs and of the state."""
    x, of_inputs, of_state = args[:3]
    return x.shape[0] * x.shape[1] * (of_inputs.numel() + of_state.numel())


def _layer(layer: nn.Module, x: Tensor, y: Tensor) -> int:
    """What the published convention counts by the call of a layer."""
    if isinstance(layer, _BatchNorm) or any(kind.__name__ == "FrozenBatchNorm2d" for kind in type(layer).__mro__):
        return 2 * y.numel()  # frozen, as torchvision, detectron2 and DETR each have it
    if isinstance(layer, nn.ReLU | _MaxPoolNd | _AvgPoolNd | _AdaptiveAvgPoolNd | _AdaptiveMaxPoolNd):
        return x.numel()
    if isinstance(layer, nn.Linear):  # the addition of its bias, whatever the number of rows
        return layer.out_features if layer.bias is not None else 0
    return 0


def _thop(net: nn.Module, inputs: Inputs) -> dict[str, int]:
    """As thop counts; what it counts apart from the rows, as for layers of two names, is the network's."""
    # thop knows torch's layers by their very type, so packed convolutions have to be named.
    packed = {
        type(layer): register_hooks[nn.Conv2d]
        for layer in nn.Module.modules(net)
        if getattr(layer, "traced_whole", False)
    }
    net.forward = partial(net.forward, **inputs.kwargs)
    total, _, tree = thop.profile(net, inputs.args, custom_ops=packed, verbose=False, ret_layer_info=True)
    found = {}
    for module, row in rows(net).items():
        if row and row not in found and is_layer(module):
            found[row] = round(_macs_at(tree, row))
    return {"": round(total) - sum(found.values())} | found


def _macs_at(tree: dict, name: str) -> float:
    macs = 0.0
    for part in name.split("."):
        macs, _, tree = tree[part]
    return macs


_aten = torch.ops.aten
_PRODUCTS: dict[
    Any, Callable[[tuple, Any], int]
] = {  # which torch's FlopCounterMode counts, and two that it misses on a CPU
    **dict.fromkeys((_aten.mm, _aten.bmm, _aten._scaled_mm), partial(_product, 0)),
    **dict.fromkeys((_aten.addmm, _aten.baddbmm), partial(_product, 1)),
    _aten._scaled_dot_product_flash_attention: _attention,
    _aten._scaled_dot_product_efficient_attention: _attention,
    _aten._scaled_dot_product_cudnn_attention: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten.mkldnn_rnn_layer: _recurrent,
}


def _operations(biased: bool) -> dict[Any, Callable[[tuple, Any], int]]:
    """biased: the additions of convolutions' biases count."""
    return _PRODUCTS | dict.fromkeys((_aten.convolution, _aten._convolution), partial(_convolution, biased))


CONVENTIONS.register("thop")(_thop)
CONVENTIONS.register("macs")(partial(executed, operations=_operations(False), layer=lambda layer, x, y: 0))
CONVENTIONS.register("norton")(partial(executed, operations=_operations(True), layer=_layer))
