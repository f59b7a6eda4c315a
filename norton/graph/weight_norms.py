"""Layers whose weight torch computes of directions and lengths (`weight_norm`), cut like others.

A length is that of all inputs of a filter, so that both change where inputs go: the layer is given its plain weight, is
cut, and is normed again.
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


class _Normed(NamedTuple):
    """dim: that keeps its lengths.  kind: the class of a parametrised layer, None of one with torch's older hook.
    trained: whether lengths and directions are."""

    dim: int
    kind: type | None
    trained: list[bool]


def is_weight_normed(layer: nn.Module) -> bool:
    """Whether torch's weight norm, and nothing else, computes the weight of a layer."""
    return _normed(layer) is not None


@contextmanager
def plain_weights(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Give layers with a weight norm plain weights for a while; then norm what became of those."""
    before = {layer: normed for layer in layers if (normed := _normed(layer)) is not None}
    for layer, normed in before.items():
        if normed.kind is None:
            remove_weight_norm(layer)
        else:  # its copies share its class, so that torch's own way back would change them
            weight = layer.weight.detach()  # type: ignore[union-attr]
            layer.__class__ = normed.kind.__mro__[1]
            layer.register_parameter("weight", nn.Parameter(weight))
    try:
        yield
    finally:
        for layer, normed in before.items():
            _norm_(layer, normed)


def _normed(layer: nn.Module) -> _Normed | None:
    hooks: list[Any] = [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, WeightNorm)]
    if len(hooks) == 1 and hooks[0].name == "weight" and not parametrize.is_parametrized(layer):
        return _Normed(hooks[0].dim, None, [p.requires_grad for p in (layer.weight_g, layer.weight_v)])  # type: ignore[union-attr]
    if not parametrize.is_parametrized(layer, "weight") or len(layer.parametrizations) > 1:  # type: ignore[arg-type]
        return None
    steps: Any = layer.parametrizations["weight"]  # type: ignore[index]
    if len(steps) > 1 or not isinstance(steps[0], parametrizations._WeightNorm):
        return None
    return _Normed(steps[0].dim, type(layer), [p.requires_grad for p in (steps.original0, steps.original1)])


@torch.no_grad()
def _norm_(layer: Any, normed: _Normed) -> None:
    weight = layer.weight.detach()
    lengths = torch.norm_except_dim(weight, 2, normed.dim)
    # A filter of zeros has no direction, and would be divided by its length.
    directions = torch.where(lengths == 0, torch.ones_like(weight), weight)
    parts = (nn.Parameter(part, trained) for part, trained in zip((lengths, directions), normed.trained, strict=True))
    if normed.kind is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch calls this form deprecated
            WeightNorm.apply(layer, "weight", normed.dim)
        layer.weight_g, layer.weight_v = parts
        return
    del layer._parameters["weight"]
    layer.__class__ = normed.kind
    steps = layer.parametrizations["weight"]
    steps.original0, steps.original1 = parts
