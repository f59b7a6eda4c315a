"""Layers whose weight torch computes of other tensors before each call, cut like others.

That is by `weight_norm` and `spectral_norm`, in both of their forms, and by the masks of `torch.nn.utils.prune`.  The
layer is given plain tensors, is cut, and computes its weight again: of lengths, which are those of all inputs of a
filter; divided by the largest singular value, which is that of what stays; times the mask's entries of what stays.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from norton.graph.copies import COMPUTING_HOOKS, renew_

_MASKED = ("weight", "bias")  # what slicers cut


def computes_weight(layer: nn.Module) -> bool:
    """Whether torch computes the weight or bias of a layer in ways that are known here, and in no other way."""
    return bool(_ways_of(layer))


def computes_otherwise(layer: nn.Module) -> bool:
    """Whether torch computes a tensor of a layer in a way that is not known here."""
    return _ways_of(layer) is None


@contextmanager
def plain_weights(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Give layers whose weight is computed plain weights for a while; then compute them of what became of those."""
    before = {layer: ways for layer in layers if (ways := _ways_of(layer))}
    for layer, ways in before.items():
        for way in ways:
            way.give_plain_(layer)
    try:
        yield
    finally:
        for layer, ways in before.items():
            for way in ways:
                way.compute_again_(layer)
            renew_(layer)


class _Way(ABC):
    """How torch computes one tensor of a layer."""

    @abstractmethod
    def give_plain_(self, layer: Any) -> None:
        """Let the layer hold a parameter in the place of what is computed."""

    @abstractmethod
    def compute_again_(self, layer: Any) -> None:
        """Let torch compute it of what became of that parameter."""


def _ways_of(layer: nn.Module) -> list[_Way] | None:
    """What torch computes before each call of a layer; None if it computes something that is not known here."""
    hooks: list[Any] = [hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, COMPUTING_HOOKS)]
    names = [_name(hook) for hook in hooks]
    if len(set(names)) < len(names) or not set(names) <= set(_MASKED):
        return None
    ways: list[_Way] = []
    for hook, name in zip(hooks, names, strict=True):
        if isinstance(hook, BasePruningMethod):
            ways.append(_Mask(name))
        elif name == "weight":
            ways.append(_Lengths(layer, hook, None) if isinstance(hook, WeightNorm) else _Spectral(hook, None))
        else:
            return None
    if not parametrize.is_parametrized(layer):
        return ways
    found: Any = layer.parametrizations
    if hooks or set(found) != {"weight"} or len(found["weight"]) > 1:
        return None
    [step] = found["weight"]
    if isinstance(step, parametrizations._WeightNorm):
        return [_Lengths(layer, step, type(layer))]
    return [_Spectral(step, type(layer))] if isinstance(step, parametrizations._SpectralNorm) else None


def _name(hook: Any) -> str:
    """The tensor that a hook computes."""
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name


def _to_class_(layer: Any, kind: type) -> None:
    """Make a parametrised layer what it was; copies share its class, so that torch's own way would change them."""
    layer.__class__ = kind.__mro__[1]


class _Lengths(_Way):
    """Weight norm: a direction and a length for each entry along `dim`.

    kind: the class of a parametrised layer, None of one with torch's older hook.
    """

    def __init__(self, layer: Any, norm: Any, kind: type | None):
        self.dim, self.kind = norm.dim, kind
        self.trained = [part.requires_grad for part in self._parts(layer)]

    def _parts(self, layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
        if self.kind is None:
            return layer.weight_g, layer.weight_v
        steps = layer.parametrizations["weight"]
        return steps.original0, steps.original1

    def give_plain_(self, layer: Any) -> None:
        if self.kind is None:
            remove_weight_norm(layer)
        else:
            weight = layer.weight.detach()
            _to_class_(layer, self.kind)
            layer.register_parameter("weight", nn.Parameter(weight))

    @torch.no_grad()
    def compute_again_(self, layer: Any) -> None:
        weight = layer.weight.detach()
        lengths = torch.norm_except_dim(weight, 2, self.dim)
        # A filter of zeros has no direction, and would be divided by its length.
        directions = torch.where(lengths == 0, torch.ones_like(weight), weight)
        parts = (nn.Parameter(part, trained) for part, trained in zip((lengths, directions), self.trained, strict=True))
        if self.kind is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch calls this form deprecated
                WeightNorm.apply(layer, "weight", self.dim)
            layer.weight_g, layer.weight_v = parts
            return
        del layer._parameters["weight"]
        layer.__class__ = self.kind
        steps = layer.parametrizations["weight"]
        steps.original0, steps.original1 = parts


class _Spectral(_Way):
    """Spectral norm: a weight divided by its largest singular value, of which the layer holds the vectors.

    kind: as above.  The vectors of what stays are those that torch's iteration would end at.
    """

    def __init__(self, norm: Any, kind: type | None):
        self.dim, self.kind = norm.dim, kind

    def give_plain_(self, layer: Any) -> None:
        if self.kind is None:
            vars(layer).pop("weight", None)
            layer._parameters["weight"] = layer._parameters.pop("weight_orig")
        else:
            _to_class_(layer, self.kind)
            layer.register_parameter("weight", layer.parametrizations["weight"].original)

    @torch.no_grad()
    def compute_again_(self, layer: Any) -> None:
        weight = layer._parameters.pop("weight")
        left, right = _first_singular_vectors(weight.detach().movedim(self.dim, 0).flatten(1))
        if self.kind is None:
            layer._parameters["weight_orig"] = weight
            layer.weight_u, layer.weight_v = left, right
            layer.weight = weight.detach()
            return
        layer.__class__ = self.kind
        steps = layer.parametrizations["weight"]
        steps.original, (steps[0]._u, steps[0]._v) = weight, (left, right)


def _first_singular_vectors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """(m, n) → (m,), (n,): of the largest singular value, which has the precision of the matrix."""
    rows, columns = matrix.shape
    if matrix.is_meta:
        return matrix.new_empty(rows), matrix.new_empty(columns)
    wide = matrix if rows <= columns else matrix.T
    precise = wide.to(torch.promote_types(matrix.dtype, torch.float32))
    short = torch.linalg.eigh(precise @ precise.T).eigenvectors[:, -1]
    long = nn.functional.normalize(precise.T @ short, dim=0)
    short, long = short.to(matrix.dtype), long.to(matrix.dtype)
    return (short, long) if rows <= columns else (long, short)


class _Mask(_Way):
    """A mask of `torch.nn.utils.prune`, with as many entries as what it masks.

    The plain tensor holds the place of each entry, which says what stays of both.
    """

    def __init__(self, name: str):
        self.name = name

    def give_plain_(self, layer: Any) -> None:
        vars(layer).pop(self.name, None)
        whole = layer._parameters[f"{self.name}_orig"]
        places = torch.arange(whole.numel(), device=whole.device).view(whole.shape)
        layer.register_parameter(self.name, nn.Parameter(places, requires_grad=False))

    @torch.no_grad()
    def compute_again_(self, layer: Any) -> None:
        places = layer._parameters.pop(self.name).detach()
        whole, mask = layer._parameters[f"{self.name}_orig"], layer._buffers[f"{self.name}_mask"]
        left = whole.detach().flatten()[places]
        layer._parameters[f"{self.name}_orig"] = nn.Parameter(left, whole.requires_grad)
        layer._buffers[f"{self.name}_mask"] = mask.flatten()[places]
        setattr(layer, self.name, left)
