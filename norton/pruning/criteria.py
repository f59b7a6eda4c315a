"""The contract of a criterion: which filters of a layer to keep.

A *distance* criterion maps `Factors` to the (O, O) symmetric matrix of distances between filters, zero on the diagonal;
filters are then removed one by one, see `norton.pruning.selection`.  A *score* criterion maps filters, `Factors` or a
dense weight (O, C, kh, kw) or (O, C), to (O,) scores, larger = keep.  A new one is one file in this folder that
registers a function with `@distance(name)` or `@score(name)`.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from norton.errors import InputError
from norton.factors import Factors
from norton.pruning.selection import removal_order
from norton.registry import Registry

CRITERIA = Registry("criterion")
_DISTANCES: set[str] = set()


def distance(name: str) -> Callable:
    """Decorator that registers a function factors → (O, O) distances as a criterion."""
    _DISTANCES.add(name)
    return CRITERIA.register(name)


def score(name: str) -> Callable:
    """Decorator that registers a function filters → (O,) scores, larger = keep, as a criterion."""
    return CRITERIA.register(name)


def is_distance(criterion: str) -> bool:
    """Whether a criterion compares filters, and so needs their factors; InputError if it is unknown."""
    CRITERIA[criterion]
    return criterion in _DISTANCES


@torch.no_grad()
def scores(filters: Factors | Tensor, criterion: str = "pabs") -> Tensor:
    """(O,) float64 score of each filter on the CPU, larger = keep.

    filters: Factors or a dense weight (O, C, kh, kw) or (O, C).  For a distance it is the step, 0 to O - 1, at which
    the filter is removed, filters of zeros first; for a score criterion the score.

    Raises InputError for an unknown criterion, a distance asked of a dense weight, and values that are not finite.
    """
    filters = checked(filters, criterion)
    if not is_distance(criterion):
        return CRITERIA[criterion](filters).double().cpu()
    order = _removed(filters, criterion, None)
    steps = torch.empty(len(order), dtype=torch.float64)
    steps[order] = torch.arange(len(order), dtype=torch.float64)
    return steps


@torch.no_grad()
def keep_filters(factors: Factors | Tensor, keep: int, criterion: str = "pabs") -> Tensor:
    """Sorted (keep,) int64 indices, on the CPU, of the filters kept; contained in those of a larger `keep`.

    factors: Factors, or a dense weight (O, C, kh, kw) or (O, C) if the criterion scores those.  Where scores are equal
    the lower index is removed.

    Raises InputError as `scores` does, and unless 1 <= keep <= O.
    """
    filters = checked(factors, criterion)
    count = _count(filters)
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer):
        raise InputError(f"keep is {keep!r}; give the number of filters kept, an integer from 1 to {count}")
    if not 1 <= keep <= count:
        raise InputError(f"cannot keep {keep} of {count} filters; keep 1 to {count}")
    if is_distance(criterion):
        removed = _removed(filters, criterion, count - keep)
    else:
        removed = torch.argsort(CRITERIA[criterion](filters).cpu(), stable=True)[: count - keep]
    kept = torch.ones(count, dtype=torch.bool)
    kept[removed] = False
    return kept.nonzero().flatten()


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


def checked(filters: Factors | Tensor, criterion: str) -> Factors | Tensor:
    """Filters detached and of a consistent, finite form, or an InputError that says what to do."""
    if isinstance(filters, Tensor):
        if is_distance(criterion):
            raise InputError(
                f"criterion {criterion!r} compares factors, and a dense weight {tuple(filters.shape)} has none; "
                "decompose it first or use l2"
            )
        if filters.ndim < 2:
            raise InputError(f"weight of shape {tuple(filters.shape)}; expected (O, C, kh, kw) or (O, C)")
        tensors = [filters]
    else:
        filters = Factors(*filters)
        if any(f.ndim != 3 for f in filters) or len({f.shape[1:] for f in filters}) != 1:
            shapes = ", ".join(f"{name} {tuple(f.shape)}" for name, f in filters._asdict().items())
            raise InputError(f"factors of shapes {shapes}; expected (C, R, O), (kh, R, O), (kw, R, O) of one R and O")
        tensors = filters
    for name, tensor in zip(("head", "body", "tail") if len(tensors) == 3 else ("weight",), tensors, strict=True):
        if tensor.numel() == 0:
            raise InputError(f"{name} of shape {tuple(tensor.shape)} is empty; it needs at least one filter and term")
        if not torch.isfinite(tensor).all():
            raise InputError(f"{name} holds NaN or infinity; check the weights it comes from")
    if isinstance(filters, Tensor):
        return filters.detach()
    return Factors(*(factor.detach() for factor in filters))


def _count(filters: Factors | Tensor) -> int:
    return len(filters) if isinstance(filters, Tensor) else filters.head.shape[2]
