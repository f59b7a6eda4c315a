"""Filter-wise tensor train: a short chain of convolutions per filter, grouped so that all filters run at once."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import FilterWise, checked_weight, convolution, principal
from norton.decomposition.methods import DECOMPOSITIONS
from norton.decomposition.tt import clip_train


@DECOMPOSITIONS.register("tt_filter")
class TTFilterConv2d(FilterWise):
    """A convolution C → O as 1×1 C → O·R1, kh×1 to O·R2, 1×kw to O, both with one group per filter; rank is (R1, R2).

    W[o] as a tensor (C, kh, kw) ≈ Σ A[o, c, a] B[o, a, i, b] D[o, b, j], by successive truncated SVDs, all filters in
    one batch.  Parameters: O (R1 C + R1 kh R2 + R2 kw).  R2 is clipped to R1 kh, beyond which it has nothing to add.

    Source: Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33(5), 2011.
    """

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.flatten(2), weight.flatten(1, 2)]

    @classmethod
    def feasible(cls, conv: nn.Conv2d, ranks: Sequence[int]) -> tuple[int, ...]:
        return clip_train(ranks, conv.kernel_size)

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: tuple[int, int]) -> Self:
        filters, (first, second) = conv.out_channels, rank
        parts = {
            "pointwise": convolution(conv.in_channels, filters * first, conv),
            "vertical": convolution(filters * first, filters * second, conv, rows=True, groups=filters),
            "horizontal": convolution(filters * second, filters, conv, columns=True, groups=filters),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, rank: tuple[int, int], *, name: str = "conv", seed: int = 0) -> Self:
        """Without iterations or chance, so the seed does not matter."""
        weight, (first, second) = checked_weight(conv, name), rank
        filters, _, kh, kw = weight.shape
        left, right = principal(weight.flatten(2), first)
        size = torch.linalg.vector_norm(left, dim=1)[..., None]  # singular values: what the rest is to be weighted by
        vertical, horizontal = principal((size * right).reshape(filters, first * kh, kw), second)
        vertical = vertical.reshape(filters, first, kh, second).permute(0, 3, 1, 2)
        return cls.of_weights(conv, rank, [left.mT / size.where(size > 0, 1), vertical, horizontal])

    def composed_weight(self) -> Tensor:
        first, second = self.rank  # type: ignore[misc]
        pointwise, vertical, horizontal = self.parts()
        filters = len(horizontal)
        vertical = vertical.reshape(filters, second, first, -1)
        pointwise, horizontal = pointwise.reshape(filters, first, -1), horizontal.reshape(filters, second, -1)
        return torch.einsum("oac,obai,obj->ocij", pointwise, vertical, horizontal)
