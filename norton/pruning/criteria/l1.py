"""The sum of a filter's absolute weights."""

from torch import Tensor

from norton.decomposition.factors import Factors
from norton.pruning.criteria.kinds import flat_filters, score


@score("l1")
def l1(filters: Factors | Tensor) -> Tensor:
    """(O,) L1 norm of each filter; of Factors, of the filters they stand for.

    Source: Li et al., Pruning filters for efficient convnets, ICLR 2017.
    """
    return flat_filters(filters).abs().sum(1)
