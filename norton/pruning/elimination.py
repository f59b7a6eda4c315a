"""Greedy elimination: which filters go, and in which order, given their distances."""

import math

import numpy as np
from torch import Tensor

from norton.common.errors import InputError


def removal_order(distances: Tensor | np.ndarray, count: int | None = None) -> np.ndarray:
    """Filters in the order they are removed: the closest pair first, of it the one nearer to all others.

    distances: (n, n) symmetric.  count: how many to remove, None for all.  Returns (count,) int64 indices; this is an
    order, not a score: `order[0]` is the filter that goes first, see
    `norton.pruning.criteria.kinds.scores` for the inverse.

    Each step finds the closest pair among the filters left and removes of the two the one with the smaller sum of
    distances to the others left.  Ties go to the first pair in lexicographic order, and to the lower index.

    Raises InputError if the matrix is not square or not finite, or the count is out of range.
    """
    matrix = _as_matrix(distances)
    n = len(matrix)
    count = n if count is None else count
    if not 0 <= count <= n:
        raise InputError(f"cannot remove {count} of {n} filters; remove 0 to {n}")
    order: np.ndarray = np.empty(count, dtype=np.int64)

    left: np.ndarray = np.ones(n, dtype=bool)
    gone = np.zeros(n)  # infinity where a filter is removed: added to a row, it hides the column
    later = np.where(np.tri(n, dtype=bool), np.inf, matrix)
    nearest = later.argmin(axis=1)
    # A row's minimum can only grow as others go.  A stale one is thus a lower bound, and is brought up to date only
    # once it is the smallest of all.
    bound = later[np.arange(n), nearest]
    sums = matrix.sum(axis=1)
    slack = 8 * n * np.finfo(float).eps * sums.max(initial=0)

    for step in range(count):
        if n - step == 1:
            order[step] = left.argmax()
            break
        i = int(bound.argmin())
        while not left[nearest[i]]:
            row = matrix[i, i + 1 :] + gone[i + 1 :]
            nearest[i] = i + 1 + row.argmin()
            bound[i] = row[nearest[i] - i - 1]
            i = int(bound.argmin())
        j = int(nearest[i])
        difference = sums[i] - sums[j]
        if abs(difference) <= slack:
            difference = _exact_sum(matrix, left, i, j) - _exact_sum(matrix, left, j, i)
        removed = i if difference <= 0 else j
        order[step] = removed
        left[removed] = False
        gone[removed] = bound[removed] = np.inf
        sums -= matrix[removed]
    return order


def _as_matrix(distances: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(distances, Tensor):
        distances = distances.detach().cpu().numpy()
    matrix = np.ascontiguousarray(distances, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise InputError(f"distances of shape {matrix.shape}; expected one row and one column per filter, (n, n)")
    if not np.isfinite(matrix).all():
        raise InputError("distances hold NaN or infinity; check the weights they come from")
    return matrix


def _exact_sum(matrix: np.ndarray, left: np.ndarray, i: int, j: int) -> float:
    """Distances of i to the filters left but j; correctly rounded, so that a true tie is seen whatever the order."""
    others = left.copy()
    others[[i, j]] = False
    return math.fsum(matrix[i, others])
