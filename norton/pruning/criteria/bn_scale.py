"""The scale that BatchNorm gives a channel: network slimming."""

from torch import Tensor

from norton.pruning.criteria.kinds import norm_score


@norm_score("bn_scale")
def bn_scale(scales: Tensor) -> Tensor:
    """(O,) mean of |γ| over the n BatchNorms that pass the channels; scales: (n, O).

    `training.sparsity` is the penalty on |γ| that goes with it.  Layers without BatchNorm go by `dense_criterion`.

    Source: Liu et al., Learning efficient convolutional networks through network slimming, ICCV 2017.
    """
    return scales.abs().double().mean(0)
