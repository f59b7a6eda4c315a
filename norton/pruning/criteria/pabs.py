"""Principal angles between subspaces: the criterion of the NORTON paper."""

from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import distance
from norton.pruning.subspaces import sum_over_modes


@distance("pabs")
def pabs(factors: Factors) -> Tensor:
    """(O, O) distances in radians: the largest principal angle, in [0, pi/2], of each mode, summed over the modes.

    A mode whose factor matrices all have full row rank spans everything and adds 0.

    Source: Pham, Zniyed & Nguyen, IEEE TNNLS 2024; Björck & Golub 1973.
    """
    return sum_over_modes(factors, lambda sines: sines.sqrt_().asin_())
