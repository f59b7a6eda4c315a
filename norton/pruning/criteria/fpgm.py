"""The geometric median: filters that stand in the middle of the others can be replaced by them."""

import torch
from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import flat_filters, score


@score("fpgm")
def fpgm(filters: Factors | Tensor) -> Tensor:
    """(O,) sum of the Euclidean distances of each filter to all others; of Factors, of the filters they stand for.

    The filter with the smallest sum is the nearest to the geometric median and goes first.  Unlike a `@distance` it is
    one look at all filters: of two that are equal both go or both stay.

    Source: He et al., Filter pruning via geometric median, CVPR 2019, equation 6.
    """
    weights = flat_filters(filters)
    # By ‖x‖² + ‖y‖² - 2 x·y in double precision: (O, O) at once, never (O, O, C·k²).
    return torch.cdist(weights, weights, compute_mode="use_mm_for_euclid_dist").fill_diagonal_(0).sum(1)
