"""The contract of a criterion: which filters of a layer to keep.

A new one is one file in this folder that registers a function with one of these decorators, by what it looks at; the
scores it returns mean: larger = keep.

- `@distance(name)`: `Factors` → (O, O), symmetric, zero on the diagonal; filters are then removed one by one, see
  `norton.pruning.elimination`.
- `@score(name)`: filters, `Factors` or a dense weight (O, C, kh, kw) or (O, C) → (O,).
- `@feature_score(name)`: maps (N, O, H, W) of the layer's output → (N, O), averaged over calibration images.
- `@gradient_score(name)`: (maps, gradients), both (N, O, H, W) → (N, O), likewise; each gradient is that of its image's
  own loss.
- `@norm_score(name)`: (n, O) scales of the n BatchNorms that pass the layer's channels → (O,).
- `@place_score(name)`: `Place` → (O,); for the rest.  -inf: goes whatever the rates say.

Where the maps are taken stands in `norton.pruning.maps`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.decomposition.factors import Factors, reconstruct
from norton.pruning.elimination import removal_order


class Place(NamedTuple):
    """A layer, for criteria that do not look at filters alone.

    filters: Factors or a dense weight.  seed: of the pruning.  named: the filters that a user names in this layer.
    """

    layer: str
    filters: Factors | Tensor
    seed: int = 0
    named: tuple[int, ...] = ()


Maps = Tensor
Subject = Factors | Tensor | tuple[Maps, Maps] | Place  # what a criterion looks at

CRITERIA = Registry("criterion")
_KIND: dict[str, str] = {}


def _kind(kind: str) -> Callable[[str], Callable]:
    def named(name: str) -> Callable:
        def add(function: Callable) -> Callable:
            CRITERIA.register(name)(function)
            _KIND[name] = kind
            return function

        return add

    return named


distance, score, feature_score, gradient_score, norm_score, place_score = map(
    _kind, KINDS := ("distance", "score", "feature_score", "gradient_score", "norm_score", "place_score")
)


def kind_of(criterion: str) -> str:
    """Which decorator registered a criterion; InputError if it is unknown."""
    CRITERIA[criterion]
    return _KIND[criterion]


def is_distance(criterion: str) -> bool:
    """Whether a criterion compares filters, and so needs their factors; InputError if it is unknown."""
    return kind_of(criterion) == "distance"


def flat_filters(filters: Factors | Tensor) -> Tensor:
    """(O, C·kh·kw) float64: the filters themselves, which factors stand for."""
    if isinstance(filters, Tensor):
        return filters.flatten(1).double()
    return reconstruct(Factors(*(factor.double() for factor in filters))).flatten(1)


@torch.no_grad()
def scores(subject: Subject, criterion: str = "pabs") -> Tensor:
    """(O,) float64 score of each filter on the CPU, larger = keep; those of maps averaged over the images.

    subject: what the criterion's kind looks at, see above.  For a distance the score is the step, 0 to O - 1, at which
    the filter is removed, filters of zeros first.

    Raises InputError for an unknown criterion, a distance asked of a dense weight, and values that are not finite.
    """
    subject = checked(subject, criterion)
    if not is_distance(criterion):
        return _scored(subject, criterion)
    order = _removed(subject, criterion, None)
    steps = torch.empty(len(order), dtype=torch.float64)
    steps[order] = torch.arange(len(order), dtype=torch.float64)
    return steps


@torch.no_grad()
def keep_filters(subject: Subject, keep: int, criterion: str = "pabs") -> Tensor:
    """Sorted (keep,) int64 indices, on the CPU, of the filters kept; contained in those of a larger `keep`.

    subject: what the criterion's kind looks at: `Factors`, or for most criteria a dense weight (O, C, kh, kw) or
    (O, C), maps, ...  Where scores are equal the lower index is removed.

    Raises InputError as `scores` does, and unless 1 <= keep <= O.
    """
    subject = checked(subject, criterion)
    count = _count(subject, kind_of(criterion))
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer):
        raise InputError(f"keep is {keep!r}; give the number of filters kept, an integer from 1 to {count}")
    if not 1 <= keep <= count:
        raise InputError(f"cannot keep {keep} of {count} filters; keep 1 to {count}")
    if is_distance(criterion):
        removed = _removed(subject, criterion, count - keep)
    else:
        removed = torch.argsort(_scored(subject, criterion), stable=True)[: count - keep]
    kept = torch.ones(count, dtype=torch.bool)
    kept[removed] = False
    return kept.nonzero().flatten()


def _scored(subject: Subject, criterion: str) -> Tensor:
    kind = kind_of(criterion)
    found = CRITERIA[criterion](*subject) if kind == "gradient_score" else CRITERIA[criterion](subject)
    found = found.double().cpu()
    if kind in ("feature_score", "gradient_score"):
        found = found.mean(0)
    return checked_scores(found, criterion)


def checked_scores(found: Tensor, criterion: str) -> Tensor:
    """The scores of a criterion; InputError where one is NaN or infinite, but for -inf of a criterion of places."""
    allowed = found.isfinite() | ((found == -math.inf) & (kind_of(criterion) == "place_score"))
    if not allowed.all():
        first = int((~allowed).nonzero()[0, 0])
        raise InputError(f"criterion {criterion!r} scores filter {first} {float(found[first])}; scores are finite")
    return found


def _removed(factors: Factors, criterion: str, count: int | None) -> Tensor:
    """The first `count` filters, None for all, in the order they are removed."""
    # A filter of zeros spans nothing and has no angle to any other: it goes first, and is no neighbour to the rest.
    alive = _nonzero(factors)
    zeros, others = (~alive).nonzero().flatten().cpu(), alive.nonzero().flatten().cpu()
    count = len(alive) if count is None else count
    if count <= len(zeros):
        return zeros[:count]
    if len(zeros):
        factors = Factors(*(factor[..., alive] for factor in factors))
    order = removal_order(CRITERIA[criterion](factors), count - len(zeros))
    return torch.cat([zeros, others[torch.from_numpy(order)]])


def _nonzero(factors: Factors) -> Tensor:
    """(O,) whether a filter has a term of which no factor is zero."""
    return torch.stack([(factor != 0).any(0) for factor in factors]).all(0).any(0)


def checked(subject: Subject, criterion: str) -> Subject:
    """What a criterion looks at, detached and of a consistent, finite form, or an InputError that says what to do."""
    kind = kind_of(criterion)
    if kind in ("distance", "score"):
        return _checked_filters(subject, criterion)
    if kind == "place_score":
        return subject._replace(filters=_checked_filters(subject.filters, criterion))
    if kind == "gradient_score":
        if subject[0].shape != subject[1].shape:
            shapes = f"{tuple(subject[0].shape)} and {tuple(subject[1].shape)}"
            raise InputError(f"maps and gradients of shapes {shapes}; expected twice the same (N, O, H, W)")
        maps, gradients = (_checked_tensor(x, name, 4) for name, x in zip(("maps", "gradients"), subject, strict=True))
        return maps, gradients
    name, dimensions = ("maps", 4) if kind == "feature_score" else ("scales", 2)
    return _checked_tensor(subject, name, dimensions)


def _checked_filters(filters: Factors | Tensor, criterion: str) -> Factors | Tensor:
    if isinstance(filters, Tensor):
        if is_distance(criterion):
            raise InputError(
                f"criterion {criterion!r} compares factors, and a dense weight {tuple(filters.shape)} has none; "
                "decompose it first or use l2"
            )
        if filters.ndim < 2:
            raise InputError(f"weight of shape {tuple(filters.shape)}; expected (O, C, kh, kw) or (O, C)")
        return _checked_tensor(filters, "weight")
    filters = Factors(*filters)
    if any(f.ndim != 3 for f in filters) or len({f.shape[1:] for f in filters}) != 1:
        shapes = ", ".join(f"{name} {tuple(f.shape)}" for name, f in filters._asdict().items())
        raise InputError(f"factors of shapes {shapes}; expected (C, R, O), (kh, R, O), (kw, R, O) of one R and O")
    return Factors(*(_checked_tensor(factor, name) for name, factor in filters._asdict().items()))


def _checked_tensor(tensor: Tensor, name: str, dimensions: int | None = None) -> Tensor:
    if dimensions is not None and tensor.ndim != dimensions:
        raise InputError(f"{name} of shape {tuple(tensor.shape)}; expected {dimensions} dimensions")
    if tensor.numel() == 0:
        raise InputError(f"{name} of shape {tuple(tensor.shape)} is empty; it needs at least one filter and term")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{name} holds NaN or infinity; check the weights it comes from")
    return tensor.detach()


def filter_count(filters: Factors | Tensor) -> int:
    return len(filters) if isinstance(filters, Tensor) else filters.head.shape[2]


def _count(subject: Subject, kind: str) -> int:
    if kind in ("feature_score", "norm_score"):
        return subject.shape[1]
    if kind == "gradient_score":
        return subject[0].shape[1]
    return filter_count(subject.filters if kind == "place_score" else subject)
