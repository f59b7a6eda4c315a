"""Layer-wise tensor train: a chain of four convolutions, pointwise, vertical, horizontal, pointwise."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, checked_weight, convolution, gram_svd, tensorly_on_torch
from norton.decomposition.methods import DECOMPOSITIONS


@DECOMPOSITIONS.register("tt")
class TTConv2d(LayerWise):
    """A convolution C → O as 1×1 C → R1, kh×1 R1 → R2, 1×kw R2 → R3, 1×1 R3 → O; rank is (R1, R2, R3).

    W as a tensor (C, kh, kw, O) ≈ Σ A[c, a] B[a, i, b] D[b, j, d] E[d, o], by successive truncated SVDs.  Parameters:
    C R1 + R1 kh R2 + R2 kw R3 + R3 O.  A rank that those before it leave no room for is clipped: R2 <= R1 kh,
    R3 <= R2 kw.

    Source: Oseledets, Tensor-train decomposition, SIAM J. Sci. Comput. 33(5), 2011; as tensorly has it.
    """

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        chain = weight.permute(1, 2, 3, 0)
        return [chain.flatten(0, modes).flatten(1) for modes in range(3)]

    @classmethod
    def feasible(cls, conv: nn.Conv2d, ranks: Sequence[int]) -> tuple[int, ...]:
        return clip_train(ranks, conv.kernel_size)

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: tuple[int, int, int]) -> Self:
        first, second, third = rank
        parts = {
            "reduce": convolution(conv.in_channels, first, conv),
            "vertical": convolution(first, second, conv, rows=True),
            "horizontal": convolution(second, third, conv, columns=True),
            "expand": convolution(third, conv.out_channels, conv),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, rank: tuple[int, int, int], *, name: str = "conv", seed: int = 0) -> Self:
        """Without iterations or chance, so the seed does not matter."""
        weight = checked_weight(conv, name)
        with tensorly_on_torch():
            from tensorly.decomposition import tensor_train

            cores = tensor_train(weight.permute(1, 2, 3, 0), [1, *rank, 1], svd=gram_svd).factors
        a, b, d, e = cores
        return cls.of_weights(conv, rank, [a[0].T, b.permute(2, 0, 1), d.permute(2, 0, 1), e[..., 0].T])

    def composed_weight(self) -> Tensor:
        a, b, d, e = self.parts()
        return torch.einsum("acuv,baiv,dbuj,oduv->ocij", a, b, d, e)


def clip_train(ranks: Sequence[int], sizes: Sequence[int]) -> tuple[int, ...]:
    """Ranks of a tensor train none of which exceeds the one before it times the size of the mode between them."""
    clipped = [ranks[0]]
    for rank, size in zip(ranks[1:], sizes, strict=False):
        clipped.append(min(rank, clipped[-1] * size))
    return tuple(clipped)
