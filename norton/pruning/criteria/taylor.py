"""How much the loss changes without a filter, to first order."""

from torch import Tensor

from norton.pruning.criteria.kinds import gradient_score


@gradient_score("taylor")
def taylor(maps: Tensor, gradients: Tensor) -> Tensor:
    """(N, O) squared first-order change of each image's loss when a map is set to zero: (Σ_hw map · gradient)².

    maps, gradients: (N, O, H, W), of the cross-entropy of each image alone.  This is the squared gradient of a gate, a
    factor of 1 on the map, placed after BatchNorm; squared per image and then averaged, so that how images are batched
    does not matter.

    Source: Molchanov et al., Importance estimation for neural network pruning, CVPR 2019, equation 8 with gates.
    """
    return (maps.double() * gradients.double()).sum((2, 3)).square()
