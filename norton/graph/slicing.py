"""Removing channels for good: one slicer per layer type, driven by the network's wiring."""

from collections.abc import Mapping, Sequence
from functools import partial, singledispatch
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from norton.graph.declarations import declaration_of, holder
from norton.graph.layers import TRANSPOSED_LAYERS, groups_of, is_decomposed
from norton.graph.numbers import change_number_
from norton.graph.weight_norms import computes_otherwise, computes_weight, plain_weights
from norton.graph.wiring import Channels, Wiring, positions


def cut_(net: nn.Module, wiring: Wiring, keep: Mapping[int, Sequence[int]]) -> None:
    """Keep only the given units of each axis, in the given order, in place.

    keep: axis → units in the network's present coordinates.  All indices are taken before anything is cut, so the
    order of the layers cannot matter.
    """
    device = next(net.parameters()).device

    def index(kept: list[int]) -> Tensor:
        return torch.tensor(kept, dtype=torch.long, device="cpu" if device.type == "meta" else device).to(device)

    inputs, outputs = kept_channels(wiring, keep)
    read = {name for name, _ in wiring.reads}
    parameters = [
        (name, positions(wiring, x, keep), dim) for name, x, dim in wiring.parameters if _changes(wiring, x, keep)
    ]
    indices = {
        name: (index(positions(wiring, x, keep)), index(positions(wiring, y, keep)), len(x))
        for name, (x, y) in wiring.indices.items()
        if _changes(wiring, np.concatenate([x, y]), keep)
    }
    sizes = {**wiring.stated, **wiring.sizes}
    numbers = {
        name: (len(positions(wiring, x, keep)), len(x)) for name, x in sizes.items() if _changes(wiring, x, keep)
    }
    for name, (left, total) in numbers.items():
        change_number_(net, name, partial(_share, name, left, total))
    with plain_weights({net.get_submodule(name) for name in (*inputs, *outputs)}):
        for name, channels in inputs.items():
            cut_inputs_(net.get_submodule(name), index(channels))
        for name, channels in outputs.items():
            layer: Any = net.get_submodule(name)
            if groups_of(layer) > 1 and name in read:
                cut_from_groups_(layer, index(channels))
            else:
                cut_outputs_(layer, index(channels))
    for name, channels, dim in parameters:
        path, _, attribute = name.rpartition(".")
        owner = net.get_submodule(path)
        setattr(owner, attribute, select(getattr(owner, attribute), index(channels), dim))
    for name, (indexed, given, count) in indices.items():
        path, _, attribute = name.rpartition(".")
        owner = net.get_submodule(path)
        setattr(owner, attribute, _renumbered(getattr(owner, attribute), indexed, given, count))


def _renumbered(places: Tensor, indexed: Tensor, given: Tensor, count: int) -> Tensor:
    """Places among `count` channels, as places among those of them that stay, of what stays of the channels there."""
    left = places.index_select(0, given.to(places.device))
    if left.is_meta:
        return left
    new = torch.empty(count, dtype=places.dtype, device=places.device)
    new[indexed.to(places.device)] = torch.arange(len(indexed), dtype=places.dtype, device=places.device)
    return new[left]


class SizeError(ValueError):
    """A number of a module that cannot follow the channels that it counts; `name`: its name."""

    def __init__(self, name: str, message: str):
        super().__init__(message)
        self.name = name


def _share(name: str, left: int, total: int, number: int) -> int:
    """What a number becomes that counts `total` channels, or a multiple or part of them, when so many are left."""
    found, rest = divmod(number * left, total)
    if rest or not found:
        raise SizeError(name, f"{name} is {number} for {total} channels, and cannot be for {left}")
    return found


def kept_channels(
    wiring: Wiring, keep: Mapping[int, Sequence[int]]
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Layer → the channels that stay of what it reads or passes, and of what it writes, for the layers that change."""
    inputs = {
        layer: positions(wiring, x, keep) for layer, x in [*wiring.passes, *wiring.reads] if _changes(wiring, x, keep)
    }
    writers = dict.fromkeys(layer for axis in keep for layer in wiring.writers[axis])
    outputs = {layer: positions(wiring, wiring.written(layer), keep) for layer in writers}
    return inputs, outputs


def _changes(wiring: Wiring, channels: Channels, keep: Mapping[int, Sequence[int]]) -> bool:
    return not wiring.axes_in(channels).isdisjoint(keep)


@singledispatch
def cut_inputs_(layer: nn.Module, kept: Tensor) -> None:
    """Keep these input channels of a layer (for BatchNorm: these channels), in this order."""
    raise TypeError(f"no input slicer for {type(layer).__name__}")


@singledispatch
def cut_outputs_(layer: nn.Module, kept: Tensor) -> None:
    """Keep these filters of a layer, in this order."""
    raise TypeError(f"no output slicer for {type(layer).__name__}")


@singledispatch
def cut_from_groups_(layer: Any, kept: Tensor) -> None:
    """Keep these filters of a grouped convolution, the same ones of each group, in this order."""
    if isinstance(layer, TRANSPOSED_LAYERS):
        layer.weight = select(layer.weight, kept[: len(kept) // layer.groups], 1)
    else:
        layer.weight = select(layer.weight, kept, 0)
    layer.out_channels = len(kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


_OF_SEVERAL = (nn.RNNBase, nn.MultiheadAttention)  # weights, under other names


def obstacle(layer: nn.Module) -> str | None:
    """Why a layer that a wiring names cannot be cut; None where it can."""
    kind = type(layer).__name__
    if (declaration := declaration_of(layer)) is not None:
        named = [item for part in (declaration.reads, declaration.writes, declaration.passes) for item in part.items()]
        owners = [holder(layer, name) for name, dim in named if dim is not None]
        held = [
            (key, getattr(owner, key) is None or key in {*owner._parameters, *owner._buffers}) for owner, key in owners
        ]
        return next(
            (f"the {key} of the {kind} is no parameter or buffer" for key, is_held in held if not is_held), None
        )
    slicers = [cut.dispatch(type(layer)) is not cut.dispatch(object) for cut in (cut_inputs_, cut_outputs_)]
    reads_and_writes = hasattr(layer, "out_channels") or hasattr(layer, "out_features")
    if not (all(slicers) if reads_and_writes else any(slicers)):
        return f"there is no slicer for a {kind}"
    plain = isinstance(layer, _OF_SEVERAL) or computes_weight(layer) or "weight" in layer._parameters
    if not is_decomposed(layer) and (computes_otherwise(layer) or not plain):
        return f"a weight or bias of the {kind} is computed from others (a parametrisation or hook)"
    return None


def freeze_obstacles(net: nn.Module, wiring: Wiring) -> None:
    """Keep the channels of layers that cannot be cut."""
    layers = {name for names in wiring.writers.values() for name in names}
    for name in sorted(layers.union(*({name for name, _ in part} for part in (wiring.reads, wiring.passes)))):
        if reason := obstacle(net.get_submodule(name)):
            wiring.freeze_layer(name, f"{name}: {reason}")


@overload
def select(tensor: nn.Parameter, kept: Tensor, dim: int) -> nn.Parameter: ...


@overload
def select(tensor: Tensor, kept: Tensor, dim: int) -> Tensor: ...  # type: ignore[overload-cannot-match]


def select(tensor: Tensor, kept: Tensor, dim: int) -> Tensor:
    """The kept entries along a dimension; of a parameter as a parameter, of a buffer as a buffer."""
    selected = tensor.detach().index_select(dim, kept)
    return nn.Parameter(selected, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else selected


@cut_inputs_.register(nn.Conv1d)
@cut_inputs_.register(nn.Conv2d)
@cut_inputs_.register(nn.Conv3d)
def _(layer: nn.Conv2d, kept: Tensor) -> None:
    layer.weight = select(layer.weight, kept[: len(kept) // layer.groups], 1)  # the same ones of each group
    layer.in_channels = len(kept)


@cut_outputs_.register(nn.Conv1d)
@cut_outputs_.register(nn.Conv2d)
@cut_outputs_.register(nn.Conv3d)
def _(layer: nn.Conv2d, kept: Tensor) -> None:
    if layer.groups > 1:  # whole groups go, with what they read
        layer.groups = layer.groups * len(kept) // layer.out_channels
        layer.in_channels = layer.groups * layer.weight.shape[1]
    layer.weight = select(layer.weight, kept, 0)
    layer.out_channels = len(kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


@cut_inputs_.register(nn.ConvTranspose1d)
@cut_inputs_.register(nn.ConvTranspose2d)
@cut_inputs_.register(nn.ConvTranspose3d)
def _(layer: nn.ConvTranspose2d, kept: Tensor) -> None:
    layer.weight = select(layer.weight, kept, 0)
    layer.in_channels = len(kept)


@cut_outputs_.register(nn.ConvTranspose1d)
@cut_outputs_.register(nn.ConvTranspose2d)
@cut_outputs_.register(nn.ConvTranspose3d)
def _(layer: nn.ConvTranspose2d, kept: Tensor) -> None:
    if layer.groups > 1:  # whole groups go, with what they read
        read, written = layer.in_channels // layer.groups, layer.weight.shape[1]
        groups = kept[::written] // written
        inputs = (groups[:, None] * read + torch.arange(read, device=kept.device)).flatten()
        layer.weight = select(layer.weight, inputs, 0)
        layer.groups, layer.in_channels = len(groups), len(inputs)
    else:
        layer.weight = select(layer.weight, kept, 1)
    layer.out_channels = len(kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


@cut_inputs_.register
def _(layer: nn.Linear, kept: Tensor) -> None:
    layer.weight = select(layer.weight, kept, 1)
    layer.in_features = len(kept)


@cut_outputs_.register
def _(layer: nn.Linear, kept: Tensor) -> None:
    layer.weight = select(layer.weight, kept, 0)
    layer.out_features = len(kept)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)


@cut_inputs_.register(nn.BatchNorm1d)
@cut_inputs_.register(nn.BatchNorm2d)
@cut_inputs_.register(nn.BatchNorm3d)
@cut_inputs_.register(nn.SyncBatchNorm)
@cut_inputs_.register(nn.InstanceNorm1d)
@cut_inputs_.register(nn.InstanceNorm2d)
@cut_inputs_.register(nn.InstanceNorm3d)
def _(layer: nn.BatchNorm2d, kept: Tensor) -> None:
    if layer.affine:
        layer.weight, layer.bias = select(layer.weight, kept, 0), select(layer.bias, kept, 0)
    if layer.running_mean is not None and layer.running_var is not None:
        layer.running_mean = layer.running_mean.index_select(0, kept)
        layer.running_var = layer.running_var.index_select(0, kept)
    layer.num_features = len(kept)


@cut_inputs_.register
def _(layer: nn.GroupNorm, kept: Tensor) -> None:
    layer.num_groups = max(1, layer.num_groups * len(kept) // layer.num_channels)  # one of all channels stays one
    layer.num_channels = len(kept)
    if layer.affine:
        layer.weight, layer.bias = select(layer.weight, kept, 0), select(layer.bias, kept, 0)


@cut_inputs_.register
def _(layer: nn.PReLU, kept: Tensor) -> None:
    layer.weight = select(layer.weight, kept, 0)
    layer.num_parameters = len(kept)


@cut_inputs_.register(nn.LayerNorm)
@cut_inputs_.register(nn.RMSNorm)
def _(layer: nn.LayerNorm, kept: Tensor) -> None:
    layer.normalized_shape = (len(kept),)
    for name in ("weight", "bias"):
        if getattr(layer, name, None) is not None:
            setattr(layer, name, select(getattr(layer, name), kept, 0))


@cut_inputs_.register
def _(layer: nn.RNNBase, kept: Tensor) -> None:
    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        if hasattr(layer, name):
            setattr(layer, name, select(getattr(layer, name), kept, 1))
    layer.input_size = len(kept)
    layer.flatten_parameters()


@cut_inputs_.register
def _(layer: nn.MultiheadAttention, kept: Tensor) -> None:
    """Whole heads, with as many channels of what it reads and gives; `out_proj` is cut as a layer of its own."""
    three = torch.cat([kept + part * layer.embed_dim for part in range(3)])  # queries, keys, values
    layer.in_proj_weight = select(select(layer.in_proj_weight, three, 0), kept, 1)
    if layer.in_proj_bias is not None:
        layer.in_proj_bias = select(layer.in_proj_bias, three, 0)
    layer.num_heads = layer.num_heads * len(kept) // layer.embed_dim
    layer.embed_dim = layer.kdim = layer.vdim = len(kept)
