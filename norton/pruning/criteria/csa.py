"""Cosine of subspace angle, as a distance."""

from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import distance
from norton.pruning.subspaces import sum_over_modes


@distance("csa")
def csa(factors: Factors) -> Tensor:
    """(O, O) distances: sin² of the largest principal angle of each mode, summed over the modes.

    The similarity is cos²; its complement is the distance.

    Source: Pham, Zniyed & Nguyen, IEEE TNNLS 2024; Björck & Golub 1973.
    """
    return sum_over_modes(factors)
