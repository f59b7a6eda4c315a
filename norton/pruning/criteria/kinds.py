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
- `@layer_score(name)`: `LayerContext` → (O,); for the rest.  -inf: goes whatever the rates say.

Where the maps are taken is said in `norton.pruning.maps`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.decomposition.factors import Factors, reconstruct
from norton.pruning.elimination import removal_order

Filters: TypeAlias = Factors | Tensor
Function = TypeVar("Function", bound=Callable[..., Tensor])

CRITERIA = Registry("criterion")


class LayerContext(NamedTuple):
    """A layer, for criteria that do not look at filters alone.

    filters: Factors or a dense weight.  seed: of the pruning.  named: the filters that a user names in this layer.
    """

    layer: str
    filters: Filters
    seed: int = 0
    named: tuple[int, ...] = ()


class Criterion(ABC):
    """A registered function with what its kind looks at, its *subject*.

    needs_images, needs_labels: whether it looks at what filters do to images, and to their loss.
    """

    needs_images = needs_labels = False

    def __init__(self, name: str, function: Callable[..., Tensor]) -> None:
        self.name, self.function = name, function

    def __call__(self, *subject: Any) -> Tensor:
        return self.function(*subject)

    @abstractmethod
    def checked(self, subject: Any) -> Any:
        """The subject detached, of a consistent, finite form, or an InputError that says what to do."""

    @abstractmethod
    def count(self, subject: Any) -> int:
        """The filters of the layer."""

    def scores(self, subject: Any) -> Tensor:
        """(O,) float64 on the CPU, of a checked subject."""
        return self.finite(self.shaped(self.function(subject), self.count(subject)).double().cpu())

    def first_removed(self, subject: Any, count: int) -> Tensor:
        """The `count` filters that go first; where scores are equal, the lower index."""
        return torch.argsort(self.scores(subject), stable=True)[:count]

    def shaped(self, found: Tensor, *shape: int) -> Tensor:
        """What the function returned, or an InputError where it is not of this shape."""
        if not isinstance(found, Tensor):
            raise InputError(f"criterion {self.name!r} returns a {type(found).__name__}; expected a tensor {shape}")
        if tuple(found.shape) != shape:
            raise InputError(f"criterion {self.name!r} returns shape {tuple(found.shape)}; expected {shape}")
        return found

    def finite(self, found: Tensor) -> Tensor:
        """Scores (O,), or an InputError where one is NaN or infinite."""
        allowed = self.allowed(found)
        if not allowed.all():
            first = int((~allowed).nonzero()[0, 0])
            raise InputError(f"criterion {self.name!r} scores filter {first} {float(found[first])}; scores are finite")
        return found

    def allowed(self, found: Tensor) -> Tensor:
        return found.isfinite()


class FilterCriterion(Criterion):
    """Looks at filters, `Factors` or a dense weight."""

    def checked(self, subject: Filters) -> Filters:
        return checked_filters(subject)

    def count(self, subject: Filters) -> int:
        return filter_count(subject)


class DistanceCriterion(FilterCriterion):
    """Compares filters by their factors; the score of one is the step, 0 to O - 1, at which it is removed."""

    def checked(self, subject: Filters) -> Factors:
        if isinstance(subject, Tensor):
            raise InputError(
                f"criterion {self.name!r} compares factors, and a dense weight {tuple(subject.shape)} has none; "
                "decompose it first or use l2"
            )
        return checked_filters(subject)

    def distances(self, factors: Factors) -> Tensor:
        """(O, O)."""
        return self.shaped(self.function(factors), *[self.count(factors)] * 2)

    def can_compare(self, filters: Filters) -> bool:
        """Whether filters have factors that can be told apart.

        A stem of three channels at rank 7: all subspaces are the whole space, so angles cannot.
        """
        if isinstance(filters, Tensor):
            return False
        channels, rank = filters.head.shape[:2]
        return rank < channels or bool(self.distances(filters).any())

    def scores(self, subject: Factors) -> Tensor:
        order = self.first_removed(subject, self.count(subject))
        steps = torch.empty(len(order), dtype=torch.float64)
        steps[order] = torch.arange(len(order), dtype=torch.float64)
        return steps

    def first_removed(self, subject: Factors, count: int) -> Tensor:
        """In the order they are removed."""
        # A filter of zeros spans nothing and has no angle to any other: it goes first, and is no neighbour to the rest.
        alive = _nonzero(subject)
        zeros, others = (~alive).nonzero().flatten().cpu(), alive.nonzero().flatten().cpu()
        if count <= len(zeros):
            return zeros[:count]
        if len(zeros):
            subject = Factors(*(factor[..., alive] for factor in subject))
        order = removal_order(self.distances(subject), count - len(zeros))
        return torch.cat([zeros, others[torch.from_numpy(order)]])


class MapCriterion(Criterion):
    """Looks at the maps (N, O, H, W) of a layer's output."""

    needs_images = True

    def checked(self, subject: Tensor) -> Tensor:
        return checked_tensor(subject, "maps", 4)

    def count(self, subject: Tensor) -> int:
        return subject.shape[1]

    def per_image(self, subject: Any) -> Tensor:
        """(N, O) float64, of a checked subject."""
        return self.shaped(self.function(subject), *subject.shape[:2]).double()

    def scores(self, subject: Any) -> Tensor:
        return self.finite(self.per_image(subject).cpu().mean(0))


class GradientCriterion(MapCriterion):
    """Looks at maps and the gradients of each image's loss by them."""

    needs_labels = True

    def checked(self, subject: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        maps, gradients = subject
        if maps.shape != gradients.shape:
            shapes = f"{tuple(maps.shape)} and {tuple(gradients.shape)}"
            raise InputError(f"maps and gradients of shapes {shapes}; expected twice the same (N, O, H, W)")
        return checked_tensor(maps, "maps", 4), checked_tensor(gradients, "gradients", 4)

    def count(self, subject: tuple[Tensor, Tensor]) -> int:
        return subject[0].shape[1]

    def per_image(self, subject: tuple[Tensor, Tensor]) -> Tensor:
        return self.shaped(self.function(*subject), *subject[0].shape[:2]).double()


class NormCriterion(Criterion):
    """Looks at the scales (n, O) of the BatchNorms that pass the layer's channels."""

    def checked(self, subject: Tensor) -> Tensor:
        return checked_tensor(subject, "scales", 2)

    def count(self, subject: Tensor) -> int:
        return subject.shape[1]


class LayerCriterion(Criterion):
    """Looks at a layer with what else is known of it; may say -inf: the filter goes whatever the rates say."""

    def checked(self, subject: LayerContext) -> LayerContext:
        return subject._replace(filters=checked_filters(subject.filters))

    def count(self, subject: LayerContext) -> int:
        return filter_count(subject.filters)

    def allowed(self, found: Tensor) -> Tensor:
        return found.isfinite() | (found == -math.inf)


def _decorator(kind: type[Criterion]) -> Callable[[str], Callable[[Function], Function]]:
    def named(name: str) -> Callable[[Function], Function]:
        def add(function: Function) -> Function:
            CRITERIA.register(name)(kind(name, function))
            return function

        return add

    return named


distance, score = _decorator(DistanceCriterion), _decorator(FilterCriterion)
feature_score, gradient_score = _decorator(MapCriterion), _decorator(GradientCriterion)
norm_score, layer_score = _decorator(NormCriterion), _decorator(LayerCriterion)


@torch.no_grad()
def scores(subject: Any, criterion: str = "pabs") -> Tensor:
    """(O,) float64 score of each filter on the CPU, larger = keep; those of maps averaged over the images.

    subject: what the criterion's kind looks at, see above.  For a distance the score is the step, 0 to O - 1, at which
    the filter is removed, filters of zeros first.

    Raises InputError for an unknown criterion, a distance asked of a dense weight, and values that are not finite.
    """
    found = CRITERIA[criterion]
    return found.scores(found.checked(subject))


@torch.no_grad()
def keep_filters(subject: Any, keep: int, criterion: str = "pabs") -> Tensor:
    """Sorted (keep,) int64 indices, on the CPU, of the filters kept; contained in those of a larger `keep`.

    subject: what the criterion's kind looks at: `Factors`, or for most criteria a dense weight (O, C, kh, kw) or
    (O, C), maps, ...  Where scores are equal the lower index is removed.

    Raises InputError as `scores` does, and unless 1 <= keep <= O.
    """
    found = CRITERIA[criterion]
    subject = found.checked(subject)
    count = found.count(subject)
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer):
        raise InputError(f"keep is {keep!r}; give the number of filters kept, an integer from 1 to {count}")
    if not 1 <= keep <= count:
        raise InputError(f"cannot keep {keep} of {count} filters; keep 1 to {count}")
    kept = torch.ones(count, dtype=torch.bool)
    kept[found.first_removed(subject, count - keep)] = False
    return kept.nonzero().flatten()


def flat_filters(filters: Filters) -> Tensor:
    """(O, C·kh·kw) float64: the filters themselves, which factors stand for."""
    if isinstance(filters, Tensor):
        return filters.flatten(1).double()
    return reconstruct(Factors(*(factor.double() for factor in filters))).flatten(1)


def filter_count(filters: Filters) -> int:
    return len(filters) if isinstance(filters, Tensor) else filters.head.shape[2]


def checked_filters(filters: Filters) -> Any:
    """Factors or a dense weight, detached; InputError for other shapes and values that are not finite."""
    if isinstance(filters, Tensor):
        if filters.ndim < 2:
            raise InputError(f"weight of shape {tuple(filters.shape)}; expected (O, C, kh, kw) or (O, C)")
        return checked_tensor(filters, "weight")
    filters = Factors(*filters)
    if len(filters) < 2 or any(f.ndim != 3 for f in filters) or len({f.shape[1:] for f in filters}) != 1:
        shapes = ", ".join(f"{name} {tuple(f.shape)}" for name, f in filters.named().items())
        raise InputError(f"factors of shapes {shapes}; expected (C, R, O), (kh, R, O), (kw, R, O) of one R and O")
    return Factors(*(checked_tensor(factor, name) for name, factor in filters.named().items()))


def checked_tensor(tensor: Tensor, name: str, dimensions: int | None = None) -> Tensor:
    """A tensor detached; InputError for another number of dimensions, no entries, and values that are not finite."""
    if dimensions is not None and tensor.ndim != dimensions:
        raise InputError(f"{name} of shape {tuple(tensor.shape)}; expected {dimensions} dimensions")
    if tensor.numel() == 0:
        raise InputError(f"{name} of shape {tuple(tensor.shape)} is empty; it needs at least one filter and term")
    if not torch.isfinite(tensor).all():
        raise InputError(f"{name} holds NaN or infinity; check the weights it comes from")
    return tensor.detach()


def _nonzero(factors: Factors) -> Tensor:
    """(O,) whether a filter has a term of which no factor is zero."""
    return torch.stack([(factor != 0).any(0) for factor in factors]).all(0).any(0)
