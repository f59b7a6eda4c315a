"""Layer-wise Tucker-2: the channels go into a smaller space, are convolved there, and come back."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, checked_weight, convolution, gram_svd, tensorly_on_torch
from norton.decomposition.methods import DECOMPOSITIONS, has_kernel, is_convolution
from norton.graph.layers import CONVOLUTIONS, TRANSPOSED_LAYERS, filters_first, in_layout_of


@DECOMPOSITIONS.register("tucker")
class TuckerConv(LayerWise):
    """A convolution C → O as 1×1 C → R1, kh×kw R1 → R2, 1×1 R2 → O; rank is (R1, R2).

    W[o, c, i, j] ≈ Σ_ab U[o, b] G[b, a, i, j] V[c, a]: Tucker along inputs and outputs alone, because kernels are
    small.  Parameters: R1 C + R1 R2 kh kw + R2 O.  Kernels of one and three dimensions likewise; of a transposed
    convolution the core is the transposed one.  Of a grouped one each group is decomposed by itself, and ranks are
    those of each.

    Source: Kim et al., Compression of deep convolutional neural networks for fast and low power mobile applications,
    ICLR 2016; higher-order orthogonal iteration as tensorly has it.
    """

    takes = "convolutions with a kernel, 1-D to 3-D, transposed or grouped too, but no depthwise ones"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        return is_convolution(layer, (*CONVOLUTIONS, *TRANSPOSED_LAYERS)) and has_kernel(layer)

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.transpose(0, 1).flatten(1), weight.flatten(1)]

    @classmethod
    def shaped_like(cls, conv: Any, rank: tuple[int, int]) -> Self:
        inputs, outputs, groups = conv.groups * rank[0], conv.groups * rank[1], conv.groups
        parts = {
            "reduce": convolution(conv.in_channels, inputs, conv, groups=groups),
            "core": convolution(inputs, outputs, conv, kernel=True, groups=groups),
            "expand": convolution(outputs, conv.out_channels, conv, groups=groups),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: Any,
        rank: tuple[int, int],
        *,
        name: str = "conv",
        seed: int = 0,
        iterations: int = 100,
        tolerance: float = 1e-4,
    ) -> Self:
        """iterations, tolerance: of tensorly's `partial_tucker`, the latter of the change of the relative error."""
        groups = checked_weight(conv, name).chunk(conv.groups)
        parts = [_partial_tucker(weight, rank, iterations, tolerance, seed) for weight in groups]
        reduce, core, expand = (torch.cat(part) for part in zip(*parts, strict=True))
        return cls.of_weights(conv, rank, [reduce, in_layout_of(conv, core), expand])

    def composed_weight(self) -> Tensor:
        reduce, core, expand = (filters_first(part).unflatten(0, (self.groups, -1)) for part in self.feature)
        weight = torch.einsum("gob,gba...,gac->goc...", expand.flatten(2), core, reduce.flatten(2))
        return in_layout_of(self, weight.flatten(0, 1))


def _partial_tucker(
    weight: Tensor, rank: tuple[int, int], iterations: int, tolerance: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """reduce (R1, C), core (R2, R1, ...) and expand (O, R2) of a weight (O, C, ...)."""
    (outputs, inputs, *kernel), (first, second) = weight.shape, rank
    if not weight.any():
        return (
            weight.new_zeros(first, inputs),
            weight.new_zeros(second, first, *kernel),
            weight.new_zeros(outputs, second),
        )
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
    return reduce.T, core, expand
