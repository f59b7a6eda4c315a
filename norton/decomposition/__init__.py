"""Decomposition: replace convolutions by layers of less parameters that approximate them."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

import torch
from rich.progress import track
from torch import Tensor, nn

from norton.decomposition.cp_als import cp_filters
from norton.decomposition.methods import DECOMPOSITIONS, decomposable, is_decomposed, layer_ranks
from norton.errors import InputError
from norton.plan import OPERATIONS, record_step
from norton.registry import import_submodules

import_submodules(__name__)

__all__ = ["DECOMPOSITIONS", "cp_filters", "decomposable", "decompose", "layer_nmse", "layer_ranks", "nmse"]


def decompose(
    net: nn.Module,
    rank: int | Mapping[str, int | None],
    *,
    method: str = "cp",
    skip: Iterable[str] | None = None,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> nn.Module:
    """A copy of `net` with its k×k convolutions decomposed; works on any module.

    rank, skip: which layers, see `layer_ranks`.  options: the method's own, such as `starts` of `cp`.
    progress: show a bar over the layers.

    Raises InputError for an unknown method, a bad rank or pattern, and a weight that is not finite.
    """
    layer_class = DECOMPOSITIONS[method]
    ranks = layer_ranks(net, rank, skip)
    _check_options(layer_class.from_conv, options, method)
    small = copy.deepcopy(net)
    made = {}  # a convolution shared under several names stays shared
    for name, value in track(ranks.items(), "decompose", disable=not progress, transient=True):
        conv = net.get_submodule(name)
        if (conv, value) not in made:
            layer = layer_class.from_conv(conv, value, name=name or "conv", seed=seed, **options)
            made[conv, value] = layer.train(conv.training)
        if name:
            small.set_submodule(name, made[conv, value])
        else:  # the network is that convolution
            small = made[conv, value]
    record_step(small, {"op": "decompose", "method": method, "ranks": ranks})
    return small


def _check_options(decomposition: Callable, options: Mapping, method: str) -> None:
    known = [name for name, p in inspect.signature(decomposition).parameters.items() if p.kind == p.KEYWORD_ONLY]
    known = [name for name in known if name not in ("name", "seed")]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"decomposition {method!r} has no option {', '.join(unknown)}; it has {', '.join(known)}")


@OPERATIONS.register("decompose")
def apply_decompose_(net: nn.Module, step: dict) -> None:
    """Give a network the shapes of a recorded decomposition, in place; values stay undefined."""
    for name, rank in step["ranks"].items():
        conv = net.get_submodule(name)
        net.set_submodule(name, DECOMPOSITIONS[step["method"]].shaped_like(conv, rank).train(conv.training))


@torch.no_grad()
def layer_nmse(net: nn.Module, small: nn.Module) -> dict[str, float]:
    """Layer → mean over its filters of ‖W[o] - Ŵ[o]‖² / ‖W[o]‖²; filters of zeros do not count.

    net: the network before decomposition.  small: after it, not pruned since.  Raises InputError if they don't match.
    """
    errors = {}
    dense = dict(net.named_modules())
    for name, layer in small.named_modules():
        if is_decomposed(layer):
            errors[name] = _nmse(_weight(name, dense.get(name)), layer.composed_weight(), name)
    if not errors:
        raise InputError(f"NMSE: {type(small).__name__} has no decomposed layer to compare")
    return errors


def nmse(net: nn.Module, small: nn.Module) -> float:
    """The mean of `layer_nmse` over the decomposed layers."""
    return fmean(layer_nmse(net, small).values())


def _weight(name: str, layer: nn.Module | None) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return layer.weight
    raise InputError(f"NMSE: {name} is decomposed in one network and no convolution in the other")


def _nmse(weight: Tensor, approximation: Tensor, name: str) -> float:
    if weight.shape != approximation.shape:
        raise InputError(
            f"NMSE: {name} is {tuple(weight.shape)} in one network and {tuple(approximation.shape)} in the other; "
            "compare before pruning"
        )
    weight, approximation = weight.double().flatten(1), approximation.double().flatten(1)
    norms = weight.square().sum(1)
    errors = (weight - approximation).square().sum(1)[norms > 0] / norms[norms > 0]
    return errors.mean().item() if len(errors) else 0.0
