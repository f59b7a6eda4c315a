"""Filter-wise CP: each filter a sum of R rank-one terms, run as 1×1, depthwise k×1 and depthwise 1×k convolutions."""

from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.calibration import Metric
from norton.decomposition.cp_als import cp_filters
from norton.decomposition.cp_outputs import refit
from norton.decomposition.factors import Factors, reconstruct
from norton.decomposition.layers import FactoredLayer
from norton.decomposition.methods import DECOMPOSITIONS
from norton.graph.layers import Form
from norton.graph.slicing import cut_inputs_, cut_outputs_, select


@DECOMPOSITIONS.register("cp")
class CPConv2d(FactoredLayer):
    """A convolution with CP-decomposed filters, in the published layout (NORTON, section III).

    `feature.pointwise` (R·O, C, 1, 1), `feature.vertical` (R·O, 1, kh, 1) and `feature.horizontal` (R·O, 1, 1, kw)
    hold the head, body and tail factors; channel r·O + o belongs to term r of filter o.  The vertical layer carries
    the vertical stride and padding, the horizontal one the horizontal.

    form says how the same function of the same parameters is computed; it is not part of a checkpoint:
    `factored` as published (three convolutions, then a sum over terms); `grouped`, a 1×1 convolution and one grouped
    kh×kw convolution that sums inside; `composed`, the terms multiplied out to a dense weight on the fly.
    """

    rank: int
    form: Form = "factored"
    clips_ranks = False  # a rank above kh·kw is an error, as published
    by_filter = True
    # More starts take twice the time altogether, and a fit to outputs makes up for most of it.
    comparison_options: ClassVar[dict[str, Any]] = {"starts": 1}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        rank: int,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] | str = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        padding_mode: str = "zeros",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        (kh, kw), (sh, sw), (dh, dw) = kernel_size, stride, dilation
        ph, pw = ((padding,) * 2) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
        terms = rank * out_channels
        depthwise = {"groups": terms, "padding_mode": padding_mode, "bias": False, "device": device, "dtype": dtype}
        pointwise = nn.Conv2d(in_channels, terms, 1, bias=False, device=device, dtype=dtype)
        vertical = nn.Conv2d(terms, terms, (kh, 1), (sh, 1), ph, (dh, 1), **depthwise)
        horizontal = nn.Conv2d(terms, terms, (1, kw), (1, sw), pw, (1, dw), **depthwise)
        super().__init__({"pointwise": pointwise, "vertical": vertical, "horizontal": horizontal}, rank, horizontal)
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw factors such that the composed weight has the variance of He et al. 2015 (fan-in)."""
        kh, kw = self.kernel_size
        std = (2 / (self.in_channels * kh * kw * self.rank)) ** (1 / 6)
        for layer in self.feature:
            nn.init.normal_(layer.weight, std=std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def fast_form(self) -> Form:
        """The fastest form with gradients: a rule of the rank alone, so that a training repeats."""
        return "grouped" if self.rank == 1 else "composed"

    # Geometry, read off the layers so that surgery has nothing to keep in step

    @property
    def out_channels(self) -> int:
        return self.feature.pointwise.weight.shape[0] // self.rank

    # From a convolution and back

    @classmethod
    def full_rank(cls, layer: nn.Conv2d) -> tuple[int]:
        return (layer.kernel_size[0] * layer.kernel_size[1],)

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: int) -> Self:
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            rank,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            padding_mode=conv.padding_mode,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        rank: int,
        *,
        name: str = "conv",
        seed: int = 0,
        starts: int = 3,
        iterations: int = 300,
        tolerance: float = 5e-5,
    ) -> Self:
        """Decompose a convolution; the options are those of `cp_filters`."""
        options = {"starts": starts, "iterations": iterations, "tolerance": tolerance}
        layer = cls.shaped_like(conv, rank)
        layer.set_factors_(cp_filters(conv.weight.detach(), rank, seed=seed, name=name, **options))
        if layer.bias is not None:
            layer.bias.data.copy_(conv.bias.data)
        return layer

    def factors(self) -> Factors:
        """head (C, R, O), body (kh, R, O), tail (kw, R, O): views of the parameters."""
        by_term = (self.rank, self.out_channels, -1)
        return Factors(*(layer.weight.reshape(by_term).permute(2, 0, 1) for layer in self.feature))

    @torch.no_grad()
    def set_factors_(self, factors: Factors) -> None:
        """Take over factors of this layer's shapes."""
        for layer, factor in zip(self.feature, factors, strict=True):
            layer.weight.copy_(factor.permute(1, 2, 0).reshape(layer.weight.shape))

    def fit_outputs_(self, target: Tensor, metric: Metric, sweeps: int) -> None:
        """Bring the composed weight nearer to `target` in a metric, see `norton.decomposition.cp_outputs`."""
        self.set_factors_(refit(self.factors(), target, metric, sweeps=sweeps))

    def composed_weight(self) -> Tensor:
        """(O, C, kh, kw): the dense weight this layer equals; gradients flow to the factors."""
        return reconstruct(self.factors())

    # Three ways to compute it

    def forward(self, input: Tensor) -> Tensor:  # named as that of the layer it takes the place of
        if self.form == "factored":
            y = self.feature(input)
            y = y.view(y.shape[0], self.rank, -1, *y.shape[2:]).sum(1)
            return y if self.bias is None else y + self.bias.view(-1, 1, 1)
        if self.form == "composed":
            return self._convolve(input, self.composed_weight(), groups=1)
        return self._forward_grouped(input)

    def _forward_grouped(self, x: Tensor) -> Tensor:
        head, body, tail = self.factors()
        # A grouped convolution wants the terms of a filter side by side: channel o·R + r.
        pointwise = head.permute(2, 1, 0).reshape(-1, self.in_channels, 1, 1)
        return self._convolve(F.conv2d(x, pointwise), torch.einsum("iro,jro->orij", body, tail), self.out_channels)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        padding = self._padding()
        mode = self.feature.vertical.padding_mode
        if mode != "zeros":
            (top, bottom), (left, right) = padding
            x, padding = F.pad(x, (left, right, top, bottom), mode=mode), ((0, 0), (0, 0))
        (top, bottom), (left, right) = padding
        if top != bottom or left != right:  # `same` padding of an even kernel
            x, top, left = F.pad(x, (left, right, top, bottom)), 0, 0
        return F.conv2d(x, weight, self.bias, self.stride, (top, left), self.dilation, groups)

    def _padding(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(before, after) for rows and for columns, whatever way the layers spell it."""
        sizes = []
        for axis, layer in enumerate((self.feature.vertical, self.feature.horizontal)):
            if layer.padding == "same":
                total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
                sizes.append((total // 2, total - total // 2))
            else:
                sizes.append((0, 0) if layer.padding == "valid" else (layer.padding[axis],) * 2)
        return sizes[0], sizes[1]


# How it is cut


@cut_inputs_.register
def _(layer: CPConv2d, kept: Tensor) -> None:
    cut_inputs_(layer.feature.pointwise, kept)


@cut_outputs_.register
def _(layer: CPConv2d, kept: Tensor) -> None:
    filters = layer.out_channels
    terms = torch.cat([kept + term * filters for term in range(layer.rank)])
    cut_outputs_(layer.feature.pointwise, terms)
    for depthwise in (layer.feature.vertical, layer.feature.horizontal):
        cut_outputs_(depthwise, terms)
        depthwise.in_channels = depthwise.groups = len(terms)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept, 0)
