"""Variance-based distance between the head factors."""

import torch
from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import distance


@distance("vbd")
def vbd(factors: Factors) -> Tensor:
    """(O, O) distances var(x - y) / (var x + var y) of the head factors, in [0, 1]; 0 where both variances are.

    The columns are ordered by falling norm of their rank-one terms and scaled to unit norm; variances are summed over
    them.  A rule that fixes the sign of a column by itself (largest entry, sum) flips under small changes, so that
    near-duplicates end up far apart.  Here each column of a pair gets the sign that brings the two nearest:
    var(x - y) = var x + var y - 2 |cov(x, y)|.

    Source: Pham, Zniyed & Nguyen, IEEE TNNLS 2024.
    """
    norms = [torch.linalg.vector_norm(factor, dim=0, dtype=torch.float64) for factor in factors]
    order = torch.argsort(torch.stack(norms).prod(0), dim=0, descending=True, stable=True)
    head = factors[0].double() / norms[0].where(norms[0] > 0, 1)
    head = head.gather(1, order.expand(head.shape))
    head = (head - head.mean(0)).transpose(0, 1)
    # What is left of a constant column is rounding.
    head = head * (head.abs().amax(1, keepdim=True) > 1e-12)
    variance = head.square().sum((0, 1))
    covariance = sum((column.T @ column).abs_() for column in head)
    total = variance + variance[:, None]
    distances = (1 - 2 * covariance / total.where(total > 0, 1)).where(total > 0, 0)
    return distances.clamp_(0, 1).fill_diagonal_(0)
