"""The norm of a filter: the criterion for what is not decomposed."""

import torch
from torch import Tensor

from norton.decomposition.factors import Factors, squared_norms
from norton.pruning.criteria.kinds import score


@score("l2")
def l2(filters: Factors | Tensor) -> Tensor:
    """(O,) Frobenius norm of each filter; of Factors, of the filters they stand for.

    Source: Li et al., Pruning filters for efficient convnets, ICLR 2017 (there the L1 norm).
    """
    if isinstance(filters, Tensor):
        return torch.linalg.vector_norm(filters.flatten(1), dim=1, dtype=torch.float64)
    return squared_norms(filters).clamp_min(0).sqrt()
