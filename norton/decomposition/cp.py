"""Filter-wise CP: each filter a sum of R rank-one terms, run as 1×1, depthwise k×1 and depthwise 1×k convolutions."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.calibration import Metric
from norton.decomposition.cp_als import cp_filters
from norton.decomposition.cp_outputs import refit
from norton.decomposition.factors import Factors, kernels, reconstruct
from norton.decomposition.layers import FactoredLayer
from norton.decomposition.methods import DECOMPOSITIONS, has_kernel, is_convolution
from norton.graph.layers import CONVOLUTIONS, Form
from norton.graph.slicing import cut_from_groups_, cut_inputs_, cut_outputs_, select

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


@DECOMPOSITIONS.register("cp")
class CPConv(FactoredLayer):
    """A convolution with CP-decomposed filters: a head for the channels, and a factor for each dimension of the kernel.

    `feature.pointwise` holds the heads (R·O, C, 1, 1), and one depthwise convolution along each dimension the others;
    channel r·O + o belongs to term r of filter o.  Each has the stride and padding of its dimension.  Of a convolution
    in G groups, the pointwise layer has G groups too, and the channels are those of the first group first: channel
    (g·R + r)·O/G + o.

    form says how the same function of the same parameters is computed; it is not part of a checkpoint:
    `factored` as published (the convolutions, then a sum over terms); `grouped`, a 1×1 convolution and one grouped
    kh×kw convolution that sums inside; `composed`, the terms multiplied out to a dense weight on the fly.
    """

    rank: int
    form: Form = "factored"
    takes = "convolutions with a kernel, 1-D to 3-D, grouped too, but neither depthwise nor transposed ones"
    clips_ranks = False  # a rank above kh·kw is an error, as published
    by_filter = True
    # More starts take twice the time altogether, and a fit to outputs makes up for most of it.
    comparison_options: ClassVar[dict[str, Any]] = {"starts": 1}
    along: ClassVar[tuple[str, ...]]  # the names of the depthwise convolutions

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        rank: int,
        *,
        stride: Sequence[int] | None = None,
        padding: Sequence[int] | str | None = None,
        dilation: Sequence[int] | None = None,
        groups: int = 1,
        padding_mode: str = "zeros",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        dims, terms, own = len(self.along), rank * out_channels, {"bias": False, "device": device, "dtype": dtype}
        kind, ones = CONVOLUTIONS[dims - 1], (1,) * dims
        stride, dilation, padding = stride or ones, dilation or ones, padding or (0,) * dims
        parts: dict[str, nn.Module] = {"pointwise": kind(in_channels, terms, 1, groups=groups, **own)}
        for axis, name in enumerate(self.along):

            def only(values: Sequence[int], otherwise: int, axis: int = axis) -> Any:
                return tuple(values[axis] if axis == other else otherwise for other in range(dims))

            padded = padding if isinstance(padding, str) else only(padding, 0)
            shape = only(kernel_size, 1), only(stride, 1), padded, only(dilation, 1)
            parts[name] = kind(terms, terms, *shape, groups=terms, padding_mode=padding_mode, **own)
        super().__init__(parts, rank, parts["pointwise"])
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw factors such that the composed weight has the variance of He et al. 2015 (fan-in)."""
        fan_in = self.in_channels // self.groups * math.prod(self.kernel_size)
        std = (2 / (fan_in * self.rank)) ** (1 / (2 * len(self.feature)))
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
    def accepts(cls, layer: nn.Module) -> bool:
        return is_convolution(layer, CONVOLUTIONS) and has_kernel(layer)

    @classmethod
    def full_rank(cls, layer: Any) -> tuple[int]:
        return (math.prod(layer.kernel_size),)

    @classmethod
    def shaped_like(cls, conv: Any, rank: int) -> Self:
        kind = _OF_DIMENSIONS[len(conv.kernel_size) - 1]
        layer = kind(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            rank,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            bias=conv.bias is not None,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        return cast(Self, layer)

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
        """head (C / G, R, O), body (kh, R, O), tail (kw, R, O), ...: views of the parameters, if there is one group."""
        by_term = (self.groups, self.rank, self.out_channels // self.groups, -1)
        return Factors(*(layer.weight.reshape(by_term).permute(3, 1, 0, 2).flatten(2) for layer in self.feature))

    @torch.no_grad()
    def set_factors_(self, factors: Factors) -> None:
        """Take over factors of this layer's shapes."""
        for layer, factor in zip(self.feature, factors, strict=True):
            by_group = factor.unflatten(2, (self.groups, -1)).permute(2, 1, 3, 0)
            layer.weight.copy_(by_group.reshape(layer.weight.shape))

    def fit_outputs_(self, target: Tensor, metric: Metric, sweeps: int, steps: int = 30) -> None:
        """Bring the composed weight nearer to `target` in a metric, see `norton.decomposition.cp_outputs`."""
        by_group = zip(*(factor.chunk(self.groups, 2) for factor in self.factors()), strict=True)
        found = [
            refit(Factors(*factors), part, one, sweeps=sweeps)
            for factors, part, one in zip(by_group, target.chunk(self.groups), metric.by_group(), strict=True)
        ]
        self.set_factors_(Factors(*(torch.cat(factor, 2) for factor in zip(*found, strict=True))))

    def composed_weight(self) -> Tensor:
        """(O, C / G, kh, kw): the dense weight this layer equals; gradients flow to the factors."""
        return reconstruct(self.factors())

    # Three ways to compute it

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]  # named as that of the layer it stands for
        if self.form == "factored":
            y = sum_of_terms(self.feature(input), self.rank, self.groups, self.dims)
            return y if self.bias is None else y + self.bias.view(-1, *[1] * self.dims)
        if self.form == "composed":
            return self._convolve(input, self.composed_weight(), self.groups)
        return self._forward_grouped(input)

    def _forward_grouped(self, x: Tensor) -> Tensor:
        head, *spatial = self.factors()
        # A grouped convolution wants the terms of a filter side by side: channel o·R + r.
        pointwise = head.permute(2, 1, 0).reshape(self.feature.pointwise.weight.shape)
        terms = _CONVOLVE[self.dims - 1](x, pointwise, groups=self.groups)
        return self._convolve(terms, kernels(spatial), self.out_channels)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        padding, mode = self.padding_by_side(), self.padding_mode
        numbers: Any = [before for before, _ in padding]
        if mode != "zeros" or any(before != after for before, after in padding):  # `same` padding of an even kernel
            sides = list(chain(*reversed(padding)))  # the last dimension first
            x, numbers = F.pad(x, sides, mode="constant" if mode == "zeros" else mode), 0
        return _CONVOLVE[self.dims - 1](x, weight, self.bias, self.stride, numbers, self.dilation, groups)

    def padding_by_side(self) -> list[tuple[int, int]]:
        """(before, after) for each dimension, whatever way the layers spell it."""
        sizes = []
        for axis, name in enumerate(self.along):
            layer = getattr(self.feature, name)
            if layer.padding == "same":
                total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
                sizes.append((total // 2, total - total // 2))
            else:
                sizes.append((0, 0) if layer.padding == "valid" else (layer.padding[axis],) * 2)
        return sizes


class CPConv1d(CPConv):
    """With one depthwise convolution, `feature.along`."""

    along = ("along",)


class CPConv2d(CPConv):
    """In the published layout (NORTON, section III): a vertical and a horizontal depthwise convolution.

    `feature.pointwise` (R·O, C, 1, 1), `feature.vertical` (R·O, 1, kh, 1) and `feature.horizontal` (R·O, 1, 1, kw) hold
    the head, body and tail factors.
    """

    along = ("vertical", "horizontal")


class CPConv3d(CPConv):
    """With three depthwise convolutions."""

    along = ("depth", "vertical", "horizontal")


_OF_DIMENSIONS = (CPConv1d, CPConv2d, CPConv3d)


def sum_of_terms(y: Tensor, rank: int, groups: int, dims: int) -> Tensor:
    """The filters' outputs (..., O, h, w) of the terms' (..., R·O, h, w), which lie as in a `CPConv`."""
    if groups == 1:
        return y.unflatten(-1 - dims, (rank, -1)).sum(-2 - dims)
    return y.unflatten(-1 - dims, (groups, rank, -1)).sum(-2 - dims).flatten(-2 - dims, -1 - dims)


# How it is cut


@cut_inputs_.register
def _(layer: CPConv, kept: Tensor) -> None:
    cut_inputs_(layer.feature.pointwise, kept)


@cut_outputs_.register
def _(layer: CPConv, kept: Tensor) -> None:
    each = layer.out_channels // layer.groups if layer.groups > 1 else len(kept)
    _cut_terms_(layer, kept.view(-1, each), cut_outputs_)  # of a grouped layer, whole groups


@cut_from_groups_.register
def _(layer: CPConv, kept: Tensor) -> None:
    _cut_terms_(layer, kept.view(layer.groups, -1), cut_from_groups_)


def _cut_terms_(layer: CPConv, kept: Tensor, cut_pointwise_: Callable[[nn.Module, Tensor], None]) -> None:
    """Keep these filters, (groups, filters of each)."""
    each, terms = layer.out_channels // layer.groups, torch.arange(layer.rank, device=kept.device)[:, None]
    filters = kept[:, None]
    channels = ((filters // each * layer.rank + terms) * each + filters % each).flatten()
    for part in layer.feature:
        if part is layer.feature.pointwise:
            cut_pointwise_(part, channels)
        else:
            cut_outputs_(part, channels)
            part.in_channels = part.groups = len(channels)
    if layer.bias is not None:
        layer.bias = select(layer.bias, kept.flatten(), 0)
