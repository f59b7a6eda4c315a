"""SVD of linear layers and 1×1 convolutions: one matrix becomes the product of two."""

from typing import Any, Self

import torch
from torch import Tensor, nn

from norton.calibration import Metric
from norton.decomposition.layers import LayerWise, checked_weight, convolution
from norton.decomposition.methods import DECOMPOSITIONS, has_kernel, is_convolution
from norton.graph.layers import (
    CONVOLUTIONS,
    TRANSPOSED_LAYERS,
    filters_first,
    groups_of,
    in_layout_of,
    is_transposed,
    torch_kind,
)


@DECOMPOSITIONS.register("svd")
class SVDLayer(LayerWise):
    """A linear layer C → O as C → R → O, or a 1×1 convolution as two; the first one has the stride and padding.

    W ≈ U_R S_R V_Rᵀ, the nearest matrix of rank R (Eckart & Young 1936).  Parameters: R (C + O).  A transposed
    convolution, whose filters add up what they make of each input, is a matrix C → O·kh·kw: 1×1, then a transposed one
    with its kernel.  Of a grouped one each group is a matrix of its own, and the rank is that of each.
    """

    takes = "linear layers, 1×1 convolutions and transposed ones, 1-D to 3-D, grouped too, but no depthwise ones"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        if is_convolution(layer, CONVOLUTIONS):
            return not has_kernel(layer)
        return torch_kind(layer) is nn.Linear or is_convolution(layer, TRANSPOSED_LAYERS)

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.transpose(0, 1).flatten(1)]  # where there is a kernel, inputs are what is reduced

    @classmethod
    def shaped_like(cls, conv: Any, rank: int) -> Self:
        if isinstance(conv, nn.Linear):
            like = {"bias": False, "device": conv.weight.device, "dtype": conv.weight.dtype}
            linear = nn.Linear(conv.in_features, rank, **like), nn.Linear(rank, conv.out_features, **like)
            return SVDLinear(dict(zip(("reduce", "expand"), linear, strict=True)), rank, conv)
        groups, last = conv.groups, is_transposed(conv)
        parts = {
            "reduce": convolution(conv.in_channels, groups * rank, conv, kernel=not last, groups=groups),
            "expand": convolution(groups * rank, conv.out_channels, conv, kernel=last, groups=groups),
        }
        return cls(parts, rank, conv)

    @classmethod
    def from_conv(cls, conv: Any, rank: int, *, name: str = "layer", seed: int = 0) -> Self:
        """Exact, so the seed does not matter; the singular values are shared out to both parts evenly."""
        weight, groups = checked_weight(conv, name), groups_of(conv)
        matrices = weight.unflatten(0, (groups, -1))  # (G, O / G, C / G, ...)
        if is_transposed(conv):
            u, s, vh = torch.linalg.svd(matrices.transpose(1, 2).flatten(2), full_matrices=False)
            root = s[:, :rank].sqrt()
            return cls.of_weights(conv, rank, [(u[:, :, :rank] * root[:, None]).mT, root[..., None] * vh[:, :rank]])
        u, s, vh = torch.linalg.svd(matrices.flatten(2), full_matrices=False)
        root = s[:, :rank].sqrt()
        return cls.of_weights(conv, rank, [root[..., None] * vh[:, :rank], u[:, :, :rank] * root[:, None]])

    @torch.no_grad()
    def fit_outputs_(self, target: Tensor, metric: Metric, sweeps: int, steps: int = 30) -> None:
        """The best matrix of this rank in a metric S = L Lᵀ: that of `target` L, times the inverse of L.

        Where there is a kernel, the filters are no matrix of that rank, and least squares go on as for other methods.
        """
        if self.transposed and has_kernel(self):
            super().fit_outputs_(target, metric, sweeps, steps)
            return
        groups = target.double().flatten(1).chunk(self.groups)
        found = [_best_in(part, one, self.rank) for part, one in zip(groups, metric.by_group(), strict=True)]
        for part, weights in zip(self.feature, zip(*found, strict=True), strict=True):
            part.weight.copy_(in_layout_of(part, torch.cat(weights)).reshape(part.weight.shape))

    def composed_weight(self) -> Tensor:
        reduce, expand = (filters_first(part).unflatten(0, (self.groups, -1)) for part in self.feature)
        if not self.dims:
            return expand[0] @ reduce[0]
        weight = torch.einsum("gor...,grc->goc...", expand, reduce.flatten(2))
        return in_layout_of(self, weight.flatten(0, 1))


def _best_in(target: Tensor, metric: Metric, rank: Any) -> tuple[Tensor, Tensor]:
    """(R, C) and (O, R), whose product is nearest to `target` (O, C) in a metric."""
    roots = [torch.linalg.cholesky(block.double()) for block in metric.blocks]
    parts = target.split(metric.sizes, dim=1)
    u, s, vh = torch.linalg.svd(torch.cat([p @ r for p, r in zip(parts, roots, strict=True)], 1), full_matrices=False)
    root = s[:rank].sqrt()
    rows = (root[:, None] * vh[:rank]).split(metric.sizes, dim=1)
    back = [torch.linalg.solve_triangular(r, p, upper=False, left=False) for p, r in zip(rows, roots, strict=True)]
    return torch.cat(back, 1), u[:, :rank] * root


class SVDLinear(SVDLayer):
    """The same for a linear layer; x: (..., C)."""

    @property
    def in_features(self) -> int:
        return self.feature.reduce.in_features

    @property
    def out_features(self) -> int:
        return self.feature.expand.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"
