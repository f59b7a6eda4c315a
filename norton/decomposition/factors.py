"""The factors of filter-wise CP: what decomposition produces, and pruning compares."""

from typing import NamedTuple

import torch
from torch import Tensor


class Factors(NamedTuple):
    """CP factors of O filters of rank R: W[o] ≈ Σ_r head[:, r, o] ∘ body[:, r, o] ∘ tail[:, r, o].

    head: (C, R, O).  body: (kh, R, O).  tail: (kw, R, O).
    """

    head: Tensor
    body: Tensor
    tail: Tensor


def reconstruct(factors: Factors) -> Tensor:
    """The dense weight (O, C, kh, kw) that the factors stand for."""
    head, body, tail = factors
    spatial = torch.einsum("iro,jro->orij", body, tail)
    return torch.einsum("cro,orij->ocij", head, spatial)


def squared_norms(factors: Factors) -> Tensor:
    """‖Ŵ[o]‖² of each filter, (O,) in float64, without forming the filters.

    The squared norm is the sum of the elementwise product of the three R×R Gram matrices (Kolda & Bader 2009,
    section 3.4).  float64 because large terms may cancel in it.
    """
    grams = [torch.einsum("iro,iso->rso", factor.double(), factor.double()) for factor in factors]
    return (grams[0] * grams[1] * grams[2]).sum((0, 1))


def balanced(factors: Factors) -> Factors:
    """The same filters: their terms from large to small, the three columns of a term of equal norm."""
    norms = [torch.linalg.vector_norm(factor.double(), dim=0) for factor in factors]  # (R, O)
    size = norms[0] * norms[1] * norms[2]
    order = size.argsort(dim=0, descending=True, stable=True)
    level = size.pow(1 / 3)
    scaled = []
    for factor, norm in zip(factors, norms, strict=True):
        scale = torch.where(size > 0, level / norm, 0).to(factor)
        scaled.append((factor * scale).gather(1, order.expand_as(factor)))
    return Factors(*scaled)
