"""How far the weights of a decomposed network are from those of the network before."""

from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from norton.common.errors import InputError
from norton.graph.copies import copied
from norton.graph.layers import is_decomposed, network_in, weight_of


@torch.no_grad()
def layer_nmse(net: nn.Module, small: nn.Module) -> dict[str, float]:
    """Layer → mean over its filters of ‖W[o] - Ŵ[o]‖² / ‖W[o]‖²; filters of zeros do not count.

    net: the network before a decomposition; what is decomposed there already does not count.  small: after it, not
    pruned since.  Raises InputError if they don't match.
    """
    net, small = copied(network_in(net)), network_in(small)
    errors = {}
    dense = dict(net.named_modules())
    for name, layer in small.named_modules():
        if is_decomposed(layer) and not (name in dense and is_decomposed(dense[name])):
            errors[name] = _nmse(_weight(name, dense.get(name)), weight_of(layer), name)
    if not errors:
        raise InputError(f"NMSE: {type(small).__name__} has no decomposed layer to compare")
    return errors


def nmse(net: nn.Module, small: nn.Module) -> float:
    """The mean of `layer_nmse` over the decomposed layers."""
    return fmean(layer_nmse(net, small).values())


def _weight(name: str, layer: nn.Module | None) -> Tensor:
    if isinstance(layer, _ConvNd | nn.Linear):
        return weight_of(layer)
    raise InputError(f"NMSE: {name} is decomposed in one network and no convolution or linear layer in the other")


def _nmse(weight: Tensor, approximation: Tensor, name: str) -> float:
    if weight.shape != approximation.shape:
        raise InputError(
            f"NMSE: {name} is {tuple(weight.shape)} in one network and {tuple(approximation.shape)} in the other; "
            "compare before pruning"
        )
    return weight_nmse(weight, approximation)


def weight_nmse(weight: Tensor, approximation: Tensor) -> float:
    """Mean over filters of ‖W[o] - Ŵ[o]‖² / ‖W[o]‖²; filters of zeros do not count."""
    weight, approximation = weight.double().flatten(1), approximation.double().flatten(1)
    norms = weight.square().sum(1)
    errors = (weight - approximation).square().sum(1)[norms > 0] / norms[norms > 0]
    return errors.mean().item() if len(errors) else 0.0
