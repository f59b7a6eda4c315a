"""Filter-wise Tucker: each filter gets channels of its own, as few as its rank, and one small kernel over them."""

from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import FilterWise, checked_weight, convolution, principal
from norton.decomposition.methods import DECOMPOSITIONS


@DECOMPOSITIONS.register("tucker_filter")
class TuckerFilterConv2d(FilterWise):
    """A convolution C → O as 1×1 C → O·R, then kh×kw with one group of R channels per filter.

    W[o, c, i, j] ≈ Σ_r V[o, r, c] G[o, r, i, j]: Tucker of each filter (C, kh, kw) along its channels alone.  As in the
    layer-wise form the spatial modes stay whole: on a kernel of 3 by 3 ranks below 3 would save next to nothing (R·9
    weights of a filter beside its R·C), and a rank per mode would cost a third convolution.  What is left is the SVD of
    a C × kh·kw matrix per filter, so the result is the best there is of this form, and no CP of that rank is better.
    Parameters: O R (C + kh kw).

    Source: Tucker 1966 (there "Tucker-1" of one mode); Eckart & Young 1936 for its optimum.
    """

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.flatten(2)]

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: int) -> Self:
        filters = conv.out_channels
        parts = {
            "pointwise": convolution(conv.in_channels, filters * rank, conv),
            "core": convolution(filters * rank, filters, conv, rows=True, columns=True, groups=filters),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, rank: int, *, name: str = "conv", seed: int = 0) -> Self:
        """Exact, so the seed does not matter; the singular values are shared out to both parts evenly."""
        left, right = principal(checked_weight(conv, name).flatten(2), rank)
        root = torch.linalg.vector_norm(left, dim=1).sqrt()[..., None]
        return cls.of_weights(conv, rank, [left.mT / root.where(root > 0, 1), right * root])

    def composed_weight(self) -> Tensor:
        pointwise, core = self.parts()
        return torch.einsum("orc,orij->ocij", pointwise.view(len(core), self.rank, -1), core)
