"""The exact forms in which a layer can be computed for inference, as plain torch layers.

A decomposed layer is a product; its parts can be computed one by one, or multiplied out in part or altogether.  Which
is fastest depends on shapes and machine (`norton.deployment.deploying` measures it); MACs do not tell.
"""

import copy
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.decomposition.cp import CPConv, CPConv2d
from norton.decomposition.factors import kernels
from norton.graph.copies import is_hooked
from norton.graph.layers import (
    as_dense,
    convolution_like,
    is_decomposed,
    joint_padding,
    scale_filters_,
)

DENSE, FUSED = "dense", "fused"
_TRITON = torch.version.cuda is not None and importlib.util.find_spec("triton") is not None
_FILTER_BLOCK = 64  # the most filters that a program of `norton.deployment.triton_cp` takes


class SumOfTerms(nn.Sequential):
    """Layers whose output holds `terms` terms (two or more) of each filter, channel r·O + o, which are added up.

    Its last layer carries the bias, in the first term.  Where there are groups, the channels of each lie so.
    """

    def __init__(self, *parts: nn.Module, terms: int, groups: int = 1):
        super().__init__(*parts)
        self.terms, self.groups = terms, groups

    def forward(self, input: Tensor) -> Tensor:
        if self.groups > 1:
            y = super().forward(input)
            return y.unflatten(1, (self.groups, self.terms, -1)).sum(2).flatten(1, 2)
        first, second, *others = super().forward(input).chunk(self.terms, 1)
        total = first + second  # a sum over an axis in between would be slow, and leave channels-last
        for term in others:
            total += term
        return total


class FusedCP(nn.Sequential):
    """A 1×1 convolution, and one grouped by filters that sums their terms: on a GPU both in one pass.

    The terms of a filter lie side by side, channel o·R + r.  On a CPU, in float64, without triton and in exports the
    convolutions are computed one after the other.
    """

    def __init__(self, pointwise: nn.Conv2d, grouped: nn.Conv2d, layer: CPConv2d):
        super().__init__(pointwise, grouped)
        self.padding = [size for pair in layer.padding_by_side() for size in pair]
        _, body, tail = layer.factors()
        taps = torch.cat([body, tail]).transpose(0, 1).detach()
        # Whole blocks of filters, (R, kh + kw, O'): the kernel reads them without a mask.
        self.register_buffer("taps", F.pad(taps, (0, -taps.shape[2] % _FILTER_BLOCK)).contiguous())

    def forward(self, input: Tensor) -> Tensor:
        if not runs_in_triton(self.taps) or torch.compiler.is_exporting():
            return super().forward(input)
        from norton.deployment.triton_cp import fused_cp  # imports triton

        pointwise, grouped = self
        geometry = list(grouped.kernel_size), list(grouped.stride), self.padding, list(grouped.dilation)
        return fused_cp(input, pointwise.weight, self.taps, grouped.bias, *geometry)


def runs_in_triton(weight: Tensor) -> bool:
    """Whether there is a kernel for this weight's device and type."""
    return _TRITON and weight.is_cuda and weight.dtype != torch.float64


def exact_forms(layer: nn.Module) -> dict[str, nn.Module]:
    """Form → a layer that computes the same as `layer`, without gradients; `dense` last, and alone if not decomposed.

    - `factored`: the parts one after the other.
    - `merged` (`tt`, `tt_filter`, `cp_layer`): the vertical and the horizontal part multiplied out to one.
    - `depthwise` (`cp`): 1×1, depthwise kh×kw, and the sum over terms.
    - `grouped` (`cp` of rank 2 and more): 1×1, and one grouped kh×kw convolution that sums the terms inside.
    - `fused` (`cp` on a GPU, with zeros around the input): both in one pass, see `norton.deployment.triton_cp`.
    - `dense`: one convolution or linear layer.
    """
    return {name: exact_form(layer, name) for name in _makers(layer)}


@torch.no_grad()
def exact_form(layer: nn.Module, name: str) -> nn.Module:
    """One of the forms of `exact_forms`; the others are not computed.  Raises KeyError where the layer lacks it."""
    return copy.deepcopy(_makers(layer)[name]()).eval().requires_grad_(False)


def form_names(layer: nn.Module) -> list[str]:
    """The forms that a layer has."""
    return list(_makers(layer))


def _makers(layer: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    """Form → what computes it, of parts of `layer` and of new ones."""
    if not is_decomposed(layer) or is_hooked(layer):  # hooks see the layer itself
        return {DENSE: lambda: layer}
    others = _of_cp(layer) if isinstance(layer, CPConv) else _of_parts(layer)
    return others | {DENSE: lambda: as_dense(layer)}


def _of_cp(layer: CPConv) -> dict[str, Callable[[], nn.Module]]:
    terms, groups = layer.rank, layer.groups

    def of_terms(*parts: nn.Module) -> nn.Module:
        return nn.Sequential(*parts) if terms == 1 else SumOfTerms(*parts, terms=terms, groups=groups)

    def bias_of_first() -> Tensor | None:
        if layer.bias is None:
            return None
        own = layer.bias.view(groups, -1)
        return F.pad(own, (0, (terms - 1) * own.shape[1])).flatten()

    def by_term() -> Tensor:  # (R·O, kh, kw), in the order of the layer's own channels
        own = kernels(layer.factors().spatial).unflatten(0, (groups, -1))
        return own.transpose(1, 2).flatten(0, 2)

    def factored() -> nn.Module:
        *first, last = layer.feature
        return of_terms(*first, _with_bias(last, bias_of_first()))

    def depthwise() -> nn.Module:
        last = _convolution(by_term()[:, None], layer, bias_of_first(), groups=terms * layer.out_channels)
        return of_terms(layer.feature.pointwise, last)

    def grouped() -> tuple[Any, Any]:
        # A grouped convolution wants the terms of a filter side by side: channel o·R + r.
        pointwise = copy.deepcopy(layer.feature.pointwise)
        factors = layer.factors()
        pointwise.weight = nn.Parameter(factors.head.permute(2, 1, 0).reshape(pointwise.weight.shape))
        return pointwise, _convolution(kernels(factors.spatial), layer, layer.bias, groups=layer.out_channels)

    found: dict[str, Callable[[], nn.Module]] = {"factored": factored, "depthwise": depthwise}
    if terms > 1:
        found["grouped"] = lambda: nn.Sequential(*grouped())
    if isinstance(layer, CPConv2d) and _fusible(layer):
        found[FUSED] = lambda: FusedCP(*grouped(), layer)
    return found


def _fusible(layer: CPConv2d) -> bool:
    """Whether `fused` is worth trying: on GPUs with the matrix products that it uses, for kernels that tiles hold."""
    if not runs_in_triton(layer.feature.pointwise.weight) or layer.padding_mode != "zeros" or layer.groups > 1:
        return False
    if torch.cuda.get_device_capability(layer.feature.pointwise.weight.device) < (8, 0):
        return False
    from norton.deployment.triton_cp import reaches  # imports triton

    return reaches(layer.kernel_size, layer.dilation)


def _of_parts(layer: nn.Module) -> dict[str, Callable[[], nn.Module]]:
    def joined(parts: Sequence[nn.Module]) -> nn.Module:
        return nn.Sequential(*parts[:-1], _with_bias(parts[-1], layer.bias))

    found: dict[str, Callable[[], nn.Module]] = {"factored": lambda: joined(list(layer.feature))}
    if any(_merges(*pair) for pair in itertools.pairwise(layer.feature)):
        found["merged"] = lambda: joined(merge_kernels(layer.feature))
    return found


def merge_kernels(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """The parts, with each vertical convolution multiplied into the horizontal one that follows, where groups agree."""
    merged: list[nn.Module] = []
    for part in parts:
        if merged and _merges(merged[-1], part):
            merged[-1] = _kernel_of(merged[-1], part)
        else:
            merged.append(part)
    return merged


def _merges(first: nn.Module, second: nn.Module) -> bool:
    return _runs(first, axis=0) and _runs(second, axis=1) and first.groups == second.groups


def _runs(part: nn.Module, axis: int) -> bool:
    """Whether a part is a convolution along one axis alone."""
    return isinstance(part, nn.Conv2d) and part.kernel_size[axis] > 1 == part.kernel_size[1 - axis]


def _kernel_of(vertical: nn.Conv2d, horizontal: nn.Conv2d) -> nn.Conv2d:
    by_group = (vertical.groups, -1)
    rows, columns = (
        vertical.weight.squeeze(3).unflatten(0, by_group),
        horizontal.weight.squeeze(2).unflatten(0, by_group),
    )
    like = copy.copy(horizontal)
    like.padding = joint_padding([vertical.padding, horizontal.padding])
    like.stride = vertical.stride[0], horizontal.stride[1]
    like.dilation = vertical.dilation[0], horizontal.dilation[1]
    weight = torch.einsum("gaci,goaj->gocij", rows, columns)
    return _convolution(weight.flatten(0, 1), like, horizontal.bias, vertical.groups)


def scale_outputs_(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Let a convolution or linear layer, decomposed or not, give scale · y + shift, (O,) each, instead of y."""
    scale_filters_(layer, scale)
    bias = shift if layer.bias is None else shift + scale * layer.bias.data
    layer.bias = nn.Parameter(bias.to(next(layer.parameters()).dtype))


def _convolution(weight: Tensor, like: Any, bias: Tensor | None, groups: int) -> Any:
    """With a weight of its own, and the stride, padding and dilation of another, that is not transposed."""
    out_channels, inputs, *kernel = weight.shape
    own = {"kernel_size": tuple(kernel), "groups": groups, "bias": bias is not None, "device": "meta"}
    conv = convolution_like(like, inputs * groups, out_channels, **own)
    conv.weight = nn.Parameter(weight.contiguous())
    if bias is not None:
        conv.bias = nn.Parameter(bias)
    return conv


def _with_bias(part: nn.Module, bias: Tensor | None) -> nn.Module:
    part = copy.deepcopy(part)
    part.bias = None if bias is None else nn.Parameter(bias.clone())
    return part
