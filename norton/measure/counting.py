"""MACs and parameters, in the convention of the published tables and in two others; thop does the walking."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import thop
import torch
from thop.profile import register_hooks
from torch import nn

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.common.tables import ShownAsTable
from norton.graph.input_sizes import stated_size
from norton.graph.layers import check_network, is_decomposed, set_form_

CONVENTIONS = Registry("counting convention")  # name → thop's custom_ops: layer type → hook


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image; params counts every parameter of the layer."""

    macs: int
    params: int


@dataclass(frozen=True, repr=False)
class Complexity(ShownAsTable):
    """Cost of a network for one image.

    macs: multiply-accumulates in the convention asked for.  params: all parameters.  params_printed: without the
    biases of decomposed layers, which the published tables leave out.  by_layer: name → cost, in forward order.
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
            {"layer": name, "MACs": cost.macs, "params": cost.params}
            for name, cost in self.by_layer.items()
            if cost.macs or cost.params
        ]

    def as_dict(self) -> dict:
        return asdict(self)


def complexity(net: nn.Module, input_size: Sequence[int] | None = None, *, convention: str = "norton") -> Complexity:
    """Count a network for one image of `input_size` (channels, height, width); by default, the network's own size.

    convention: `norton` as published (convolutions with their bias additions, linear layers, BatchNorm, ReLU, pooling
    modules), `macs` (convolutions and linear layers alone), `thop` (that package as it is).
    """
    check_network(net)
    hooks = CONVENTIONS[convention]
    size = input_size or stated_size(net)
    if size is None:
        raise InputError(f"{type(net).__name__} states no input size; pass input_size=(channels, height, width)")
    # thop leaves buffers behind, and sees the published form of a decomposed layer alone.
    counted = set_form_(copy.deepcopy(net), "factored").float().cpu()
    image = torch.zeros(1, *size)
    try:
        macs, _, tree = thop.profile(counted, (image,), custom_ops=hooks, verbose=False, ret_layer_info=True)
    except RuntimeError as error:
        raise InputError(f"{type(net).__name__} cannot take an input of size {tuple(size)}: {error}") from None
    by_layer = {
        name: LayerCost(round(_macs_at(tree, name)), sum(p.numel() for p in layer.parameters()))
        for name, layer in net.named_modules()
        if _is_unit(net, name, layer)
    }
    params = sum(p.numel() for p in net.parameters())
    biases = sum(m.bias.numel() for m in net.modules() if is_decomposed(m) and m.bias is not None)
    return Complexity(round(macs), params, params - biases, by_layer, convention)


def count_like(layer: type[nn.Module], known: type[nn.Module]) -> None:
    """Count a kind of layer like another one in every convention; thop goes by exact types."""
    for name in CONVENTIONS:
        hooks = CONVENTIONS[name]
        hooks[layer] = hooks[known] if known in hooks else register_hooks[known]


def percent_removed(part: float, whole: float) -> float:
    """How much smaller `part` is than `whole`, in percent."""
    return 100 * (1 - part / whole)


def _is_unit(net: nn.Module, name: str, layer: nn.Module) -> bool:
    """A row of the table: a decomposed layer as a whole, or a layer without children outside of one."""
    parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
    inside = any(is_decomposed(net.get_submodule(parent)) for parent in parents)
    return bool(name) and not inside and (is_decomposed(layer) or not any(layer.children()))


def _macs_at(tree: dict, name: str) -> float:
    macs = 0.0
    for part in name.split("."):
        macs, _, tree = tree[part]
    return macs


def _hook(count: Callable) -> Callable:
    def hook(layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        layer.total_ops += count(layer, inputs[0], output)

    return hook


def _conv(layer: nn.Conv2d, x: torch.Tensor, y: torch.Tensor) -> int:
    return y.numel() * layer.weight[0].numel()


def _conv_and_bias(layer: nn.Conv2d, x: torch.Tensor, y: torch.Tensor) -> int:
    """With the ReLU that a packed convolution computes."""
    return _conv(layer, x, y) + y.numel() * ((layer.bias is not None) + getattr(layer, "relu", False))


def _linear(layer: nn.Linear, x: torch.Tensor, y: torch.Tensor) -> int:
    return y.numel() * layer.in_features


_POOLINGS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

CONVENTIONS.register("thop")({})
CONVENTIONS.register("macs")(
    {nn.Conv2d: _hook(_conv)}
    | {nn.Linear: _hook(_linear)}
    | dict.fromkeys((*_NORMS, *_POOLINGS, nn.ReLU), _hook(lambda layer, x, y: 0))
)
CONVENTIONS.register("norton")(
    {nn.Conv2d: _hook(_conv_and_bias)}
    # the addition of a linear layer's bias counts once per output feature, whatever the number of rows
    | {nn.Linear: _hook(lambda layer, x, y: _linear(layer, x, y) + layer.out_features * (layer.bias is not None))}
    | dict.fromkeys(_NORMS, _hook(lambda layer, x, y: 2 * y.numel()))
    | dict.fromkeys((*_POOLINGS, nn.ReLU), _hook(lambda layer, x, y: x.numel()))
)
