"""Layer-wise Tucker-2: the channels go into a smaller space, are convolved there, and come back."""

from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, convolution, gram_svd, tensorly_on_torch, weight_of
from norton.decomposition.methods import DECOMPOSITIONS


@DECOMPOSITIONS.register("tucker")
class TuckerConv2d(LayerWise):
    """A convolution C → O as 1×1 C → R1, kh×kw R1 → R2, 1×1 R2 → O; rank is (R1, R2).

    W[o, c, i, j] ≈ Σ_ab U[o, b] G[b, a, i, j] V[c, a]: Tucker along inputs and outputs alone, because kernels are
    small.  Parameters: R1 C + R1 R2 kh kw + R2 O.

    Source: Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications,
    ICLR 2016; higher-order orthogonal iteration as tensorly has it.
    """

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.transpose(0, 1).flatten(1), weight.flatten(1)]

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: tuple[int, int]) -> Self:
        inputs, outputs = rank
        parts = {
            "reduce": convolution(conv.in_channels, inputs, conv),
            "core": convolution(inputs, outputs, conv, rows=True, columns=True),
            "expand": convolution(outputs, conv.out_channels, conv),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        rank: tuple[int, int],
        *,
        name: str = "conv",
        seed: int = 0,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ) -> Self:
        """iterations, tolerance: of tensorly's `partial_tucker`, the latter of the change of the relative error."""
        weight = weight_of(conv, name)
        if not weight.any():
            return cls.of_weights(conv, rank, [part.zero_() for part in cls.shaped_like(conv, rank).parts()])
        with tensorly_on_torch():
            from tensorly.decomposition import partial_tucker

            (core, (expand, reduce)), _ = partial_tucker(
                weight,
                rank[::-1],
                modes=[0, 1],
                n_iter_max=iterations,
                tol=tolerance,
                svd=gram_svd,
                random_state=seed,
            )
        return cls.of_weights(conv, rank, [reduce.T, core, expand])

    def composed_weight(self) -> Tensor:
        reduce, core, expand = self.parts()
        return torch.einsum("ob,baij,ac->ocij", expand.flatten(1), core, reduce.flatten(1))
