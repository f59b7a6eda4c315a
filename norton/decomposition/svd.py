"""SVD of linear layers and 1×1 convolutions: one matrix becomes the product of two."""

from typing import Self

import torch
from torch import Tensor, nn

from norton.calibration import Metric
from norton.decomposition.layers import LayerWise, convolution, weight_of
from norton.decomposition.methods import DECOMPOSITIONS
from norton.graph.layers import torch_kind


@DECOMPOSITIONS.register("svd")
class SVDLayer(LayerWise):
    """A linear layer C → O as C → R → O, or a 1×1 convolution as two; the first one has the stride and padding.

    W ≈ U_R S_R V_Rᵀ, the nearest matrix of rank R (Eckart & Young 1936).  Parameters: R (C + O).
    """

    takes = "linear layers and 1×1 convolutions that are not grouped"

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        if torch_kind(layer) is nn.Conv2d:
            return layer.kernel_size == (1, 1) and layer.groups == 1
        return torch_kind(layer) is nn.Linear

    @classmethod
    def unfoldings(cls, weight: Tensor) -> list[Tensor]:
        return [weight.flatten(1)]

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d | nn.Linear, rank: int) -> Self:
        if isinstance(conv, nn.Conv2d):
            reduce = convolution(conv.in_channels, rank, conv, rows=True, columns=True)
            return cls({"reduce": reduce, "expand": convolution(rank, conv.out_channels, conv)}, rank, conv)
        like = {"bias": False, "device": conv.weight.device, "dtype": conv.weight.dtype}
        reduce, expand = nn.Linear(conv.in_features, rank, **like), nn.Linear(rank, conv.out_features, **like)
        return SVDLinear({"reduce": reduce, "expand": expand}, rank, conv)

    @classmethod
    def from_conv(cls, conv: nn.Conv2d | nn.Linear, rank: int, *, name: str = "layer", seed: int = 0) -> Self:
        """Exact, so the seed does not matter; the singular values are shared out to both parts evenly."""
        u, s, vh = torch.linalg.svd(weight_of(conv, name).flatten(1), full_matrices=False)
        root = s[:rank].sqrt()
        return cls.of_weights(conv, rank, [root[:, None] * vh[:rank], u[:, :rank] * root])

    @torch.no_grad()
    def fit_outputs_(self, target: Tensor, metric: Metric, sweeps: int) -> None:
        """The best matrix of this rank in a metric S = L Lᵀ: that of `target` L, times the inverse of L."""
        roots = [torch.linalg.cholesky(block.double()) for block in metric.blocks]
        parts = target.double().flatten(1).split(metric.sizes, dim=1)
        u, s, vh = torch.linalg.svd(
            torch.cat([p @ r for p, r in zip(parts, roots, strict=True)], 1), full_matrices=False
        )
        root = s[: self.rank].sqrt()
        rows = (root[:, None] * vh[: self.rank]).split(metric.sizes, dim=1)
        back = [torch.linalg.solve_triangular(r, p, upper=False, left=False) for p, r in zip(rows, roots, strict=True)]
        for part, weight in zip(self.feature, (torch.cat(back, 1), u[:, : self.rank] * root), strict=True):
            part.weight.copy_(weight.reshape(part.weight.shape))

    def composed_weight(self) -> Tensor:
        reduce, expand = (part.flatten(1) for part in self.parts())
        weight = expand @ reduce
        return weight.view(*weight.shape, *[1] * (self.composed_dims - 2))


class SVDLinear(SVDLayer):
    """The same for a linear layer; x: (..., C)."""

    composed_dims = 2

    @property
    def in_features(self) -> int:
        return self.feature.reduce.in_features

    @property
    def out_features(self) -> int:
        return self.feature.expand.out_features

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"
