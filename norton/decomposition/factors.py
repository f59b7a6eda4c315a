"""The factors of filter-wise CP: what decomposition produces, and pruning compares."""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import Self

import torch
from torch import Tensor


class Factors(tuple[Tensor, ...]):
    """CP factors of O filters of rank R: W[o] ≈ Σ_r head[:, r, o] ∘ body[:, r, o] ∘ tail[:, r, o].

    head: (C, R, O).  body: (kh, R, O).  tail: (kw, R, O).  Filters of other dimensions have a factor for each, (k, R,
    O): those of a 1-D convolution head and body alone, those of a 3-D one three behind the head.
    """

    def __new__(cls, *factors: Tensor) -> Self:
        return super().__new__(cls, factors)

    def __getnewargs__(self) -> tuple[Tensor, ...]:  # for copies
        return tuple(self)

    @property
    def head(self) -> Tensor:
        return self[0]

    @property
    def body(self) -> Tensor:
        return self[1]

    @property
    def tail(self) -> Tensor:
        return self[-1]

    @property
    def spatial(self) -> tuple[Tensor, ...]:
        return self[1:]

    def named(self) -> dict[str, Tensor]:
        """By the names that messages call them."""
        names = ("head", "body", "tail") if len(self) <= 3 else ("head", "depth", "body", "tail")
        return dict(zip(names, self, strict=False))


def reconstruct(factors: Factors) -> Tensor:
    """The dense weight (O, C, kh, kw) that the factors stand for."""
    return torch.einsum("cro,or...->oc...", factors.head, kernels(factors.spatial))


def kernels(spatial: Sequence[Tensor]) -> Tensor:
    """(O, R, kh, kw): the spatial kernel of each term."""
    axes = "ijk"[: len(spatial)]
    return torch.einsum(f"{','.join(f'{axis}ro' for axis in axes)}->or{axes}", *spatial)


def squared_norms(factors: Factors) -> Tensor:
    """‖Ŵ[o]‖² of each filter, (O,) in float64, without forming the filters.

    The squared norm is the sum of the elementwise product of the R×R Gram matrices (Kolda & Bader 2009, section 3.4).
    float64 because large terms may cancel in it.
    """
    grams = [torch.einsum("iro,iso->rso", factor.double(), factor.double()) for factor in factors]
    return reduce(mul, grams).sum((0, 1))


def balanced(factors: Factors) -> Factors:
    """The same filters: their terms from large to small, the columns of a term of equal norm."""
    norms = [torch.linalg.vector_norm(factor.double(), dim=0) for factor in factors]  # (R, O)
    size = reduce(mul, norms)
    order = size.argsort(dim=0, descending=True, stable=True)
    level = size.pow(1 / len(factors))
    scaled = []
    for factor, norm in zip(factors, norms, strict=True):
        scale = torch.where(size > 0, level / norm, 0).to(factor)
        scaled.append((factor * scale).gather(1, order.expand_as(factor)))
    return Factors(*scaled)
