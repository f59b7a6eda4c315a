"""The average rank of the feature maps."""

import torch
from torch import Tensor

from norton.pruning.criteria.kinds import feature_score
from norton.pruning.spectra import singular_values


@feature_score("hrank")
def hrank(maps: Tensor) -> Tensor:
    """(N, O) rank of each rectified map, max(maps, 0), (N, O, H, W).

    Taken after BatchNorm and a ReLU, as published: before it nearly every map has full rank.  The ReLU is this
    function's own, because the network's may come only after a sum with other maps.  A singular value counts above
    max(H, W) times the largest one times float32's resolution (1.2e-7), as in `torch.linalg.matrix_rank`.

    Source: Lin et al., HRank: filter pruning using high-rank feature map, CVPR 2020.
    """
    values = singular_values(maps.clamp_min(0))
    tolerance = max(maps.shape[-2:]) * torch.finfo(torch.float32).eps * values.amax(-1, keepdim=True)
    return (values > tolerance).sum(-1).double()
