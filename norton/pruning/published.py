"""Filter selection as the paper's public code has it, mistakes included, so that their worth can be measured.

Two things differ from the paper's text.  The angle between two subspaces is the arcsine of the residual's *Frobenius*
norm, at most 1, taken modulo pi/2: at rank 2 and more unrelated subspaces have a residual of norm 1 and more, so that
their angle wraps from pi/2 to zero and they pass for identical.  And the list of removed filters, in the order of
removal, is read as if its entry i were the score of filter i, which keeps filters that have nothing to do with it.

With `pabs` the selection is the published one in all respects but rounding; `csa` and `vbd` take both mistakes too,
over this project's own distances (the public code's are of the head factors alone).

Source: github.com/pvti/NORTON, pruning/saliency.py and pruning/prune.py.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import CRITERIA, scores

# What the distances based on angles make of an angle; other criteria have no angle to wrap.
_OF_ANGLE: dict[str, Callable[[Tensor], Tensor]] = {"pabs": lambda angle: angle, "csa": lambda angle: angle.sin() ** 2}


@torch.no_grad()
def published_scores(factors: Factors, criterion: str) -> Tensor:
    """(O,) float64 "scores" on the CPU, larger = keep: entry i is the filter that was removed in step i.

    Raises InputError as `norton.pruning.scores` does.
    """
    judge = CRITERIA[criterion]
    factors = judge.checked(factors)
    if criterion in _OF_ANGLE:
        distances = sum(_OF_ANGLE[criterion](wrapped_angles(factor)) for factor in factors)
    else:
        distances = judge.distances(factors)
    order = published_order(distances.cpu().numpy())
    return torch.tensor([*order, len(distances) - 1], dtype=torch.float64)


def wrapped_angles(factor: Tensor) -> Tensor:
    """(O, O) published angle between the column spaces of every two filters' factor matrices, in [0, pi/2).

    factor: (n, R, O).  arcsin(min(1, ‖Q_j - Q_i Q_iᵀ Q_j‖_F)) mod pi/2; the squared norm is the number of columns less
    ‖Q_iᵀ Q_j‖_F².
    """
    bases, _ = torch.linalg.qr(factor.permute(2, 0, 1).double())
    filters, size, columns = bases.shape
    flat = bases.mT.reshape(filters * columns, size)
    products = (flat @ flat.T).view(filters, columns, filters, columns)
    residual = (columns - products.square().sum((1, 3))).clamp(0, 1).sqrt()
    upper = torch.remainder(residual.asin(), math.pi / 2).triu(1)
    return upper + upper.T


def published_order(distances: np.ndarray) -> list[int]:
    """Filters in the order of their removal, all but the last.

    distances: (n, n) symmetric.  Of several closest pairs the published code takes the *rows* of the first two entries
    that hold the minimum; distances that wrapped to zero make such ties common.
    """
    left = np.triu(distances.astype(float), 1)
    left += left.T  # the same to the last bit on both sides, or a pair would be found once
    np.fill_diagonal(left, np.inf)
    order = []
    for _ in range(len(left) - 1):
        first, second = np.argwhere(left == left.min())[:2, 0]
        sums = [left[i][np.isfinite(left[i])].sum() for i in (first, second)]
        gone = first if sums[0] < sums[1] else second
        order.append(int(gone))
        left[gone, :] = left[:, gone] = np.inf
    return order


SELECTIONS = {"exact": scores, "published": published_scores}  # how distances between filters become scores
