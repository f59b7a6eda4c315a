"""Second moments of what a layer reads: all that the expected squared error of its output depends on."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.graph.layers import groups_of, is_transposed, weight_of

_PATCH_BYTES = 2**28  # that are held at once


@dataclass
class InputMoments:
    """Moments of the patches x that a layer reads, D = C·kh·kw numbers each as a flattened filter has them.

    groups: of the layer; where there are several, the same of each, with the C inputs that it reads: (O, D) are then
    the filters of all, mean (groups·D,), and second has blocks for each.

    second: E[x xᵀ], (D, D); or its diagonal blocks, that many consecutive channels each, where memory would not
    suffice for all.  mean: E[x], (D,).  cross: E[y xᵀ], (O, D), of the outputs y that it should give, without its bias;
    None where those are what its weight gives.  output_mean: E[y], (O,).  rows: how many patches were looked at.
    """

    second: list[Tensor]
    mean: Tensor
    cross: Tensor | None
    output_mean: Tensor | None
    rows: int
    groups: int = 1

    def by_group(self) -> list["InputMoments"]:
        """Those of each group of the layer."""
        if self.groups == 1:
            return [self]
        each = len(self.second) // self.groups

        def part(values: Any, group: int) -> Any:
            return None if values is None else values.chunk(self.groups)[group]

        return [
            InputMoments(
                self.second[group * each : (group + 1) * each],
                part(self.mean, group),
                part(self.cross, group),
                part(self.output_mean, group),
                self.rows,
            )
            for group in range(self.groups)
        ]

    def mean_outputs(self, weight: Tensor) -> Tensor:
        """(O,): what filters (O, C, ...) give of the mean patch."""
        filters = weight.double().flatten(1).unflatten(0, (self.groups, -1))
        return (filters @ self.mean.view(self.groups, -1, 1)).flatten()

    def centred(self) -> "InputMoments":
        """The same of x - E[x] and y - E[y]: what matters where a bias or BatchNorm takes up any constant."""
        second, start = [], 0
        for block in self.second:
            mean = self.mean[start : start + len(block)]
            second.append(block - mean[:, None] * mean)
            start += len(block)
        cross = self.cross
        if cross is not None and self.output_mean is not None:
            means = self.mean.view(self.groups, -1).repeat_interleave(len(cross) // self.groups, 0)
            cross = cross - self.output_mean[:, None] * means
        return InputMoments(second, self.mean, cross, self.output_mean, self.rows, self.groups)


@torch.no_grad()
def gather_moments(
    layer: nn.Module,
    inputs: Iterable[Tensor],
    targets: Iterable[Tensor] | None = None,
    *,
    blocks: int = 1,
    positions: int | None = None,
    seed: int = 0,
) -> InputMoments:
    """The moments of a layer's patches over batches of its inputs, one batch in memory at a time.

    layer: a convolution or linear layer.  inputs: batches (N, C, H, W) or (N, ..., C).  targets: what the layer's
    output should be, without its bias.  blocks: into how many groups of channels the second moments fall apart.
    positions: of an output map, as many of which are drawn by the seed for each batch; None for all.  Sums are float64.
    """
    generator = torch.Generator().manual_seed(seed)
    groups = groups_of(layer)
    sizes = block_sizes(layer, blocks) * groups
    sums: list[Tensor] = []
    rows = 0
    for x, y in zip(inputs, repeat(None) if targets is None else targets, strict=False):
        called = layer if y is None else _as_called(layer, x, y)
        chosen = _drawn_positions(called, x, positions, generator)
        for part, target in _parts_in_memory(called, x, y):
            patch = patches(called, part, chosen)
            found = [piece.mT @ piece for piece in patch.split(sizes, dim=1)] + [patch.sum(0)]
            if target is not None:
                wanted = output_rows(layer, target, chosen)
                pairs = zip(wanted.chunk(groups, 1), patch.chunk(groups, 1), strict=True)
                found += [torch.cat([one.mT @ read for one, read in pairs]), wanted.sum(0)]
            if not sums:
                sums = [torch.zeros_like(value, dtype=torch.float64) for value in found]
            for total, value in zip(sums, found, strict=True):
                total += value
            rows += len(patch)
    for total in sums:
        total /= rows
    second, (mean, *of_targets) = sums[: len(sizes)], sums[len(sizes) :]
    cross, output_mean = of_targets or (None, None)
    return InputMoments(second, mean, cross, output_mean, rows, groups)


def block_sizes(layer: nn.Module, blocks: int) -> list[int]:
    """The sizes of so many blocks of consecutive channels, in numbers of a flattened filter."""
    _, channels, *kernel = weight_of(layer).shape
    positions = prod(kernel)
    return [len(group) * positions for group in torch.empty(channels).tensor_split(min(blocks, channels))]


def patches(layer: Any, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """(rows, D): for each position of the output what the layer multiplies its filters with; a linear layer: x itself.

    Of a grouped layer D numbers for each group.  chosen: positions of the output map, counted row by row; None for all.
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    x, kernel, dims = _padded(layer, x), layer.kernel_size, len(layer.kernel_size)
    sizes, (n, c, *along) = _map_size(layer, x), x.stride()
    steps = [stride * size for stride, (_, _, size) in zip(along, _geometry(layer), strict=True)]
    taps = [stride * size for stride, size in zip(along, layer.dilation, strict=True)]
    windows = x.as_strided((len(x), x.shape[1], *sizes, *kernel), (n, c, *steps, *taps))
    if chosen is None:
        rows = windows.movedim(1, 1 + dims).flatten(0, dims)
    else:
        places = torch.unravel_index(chosen, sizes)
        rows = windows[(slice(None), slice(None), *places)].transpose(1, 2).flatten(0, 1)
    if is_transposed(layer):  # the filter lies the other way round over what it adds up
        rows = rows.flip(tuple(range(2, 2 + dims)))
    return rows.flatten(1)


def output_rows(layer: nn.Module, y: Tensor, chosen: Tensor | None = None) -> Tensor:
    """(rows, O): a layer's output in the order of `patches`."""
    if isinstance(layer, nn.Linear):
        return y.flatten(0, -2)
    y = y.flatten(2) if chosen is None else y.flatten(2)[:, :, chosen]
    return y.mT.flatten(0, 1)


def _geometry(layer: Any) -> list[tuple[int, int, int]]:
    """Size, dilation and stride for each dimension; the stride of a transposed convolution is in what it reads."""
    strides = [1] * len(layer.kernel_size) if is_transposed(layer) else layer.stride
    return list(zip(layer.kernel_size, layer.dilation, strides, strict=True))


def _as_called(layer: Any, x: Tensor, y: Tensor) -> nn.Module:
    """A transposed convolution with the output padding by which it gives maps of this size, see its `output_size`."""
    if not is_transposed(layer):
        return layer
    found = _map_size(layer, _padded(layer, x[:1, :1]))
    more = [size - own for size, own in zip(y.shape[2:], found, strict=True)]
    called = copy.copy(layer)
    called.output_padding = tuple(own + n for own, n in zip(layer.output_padding, more, strict=True))
    return called


def _padded(layer: Any, x: Tensor) -> Tensor:
    """What the filters of a layer run over: what it reads, with what is around it.

    A transposed convolution runs over its inputs with zeros between them.
    """
    if is_transposed(layer):
        return _spread(layer, x)
    if layer.padding == "valid":
        return x.contiguous()
    sides = []
    for axis, (size, dilation, _) in enumerate(_geometry(layer)):
        if layer.padding == "same":
            total = dilation * (size - 1)
            sides.append((total // 2, total - total // 2))
        else:
            sides.append((layer.padding[axis],) * 2)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, list(chain(*reversed(sides))), mode=mode).contiguous()  # the last dimension first


def _spread(layer: Any, x: Tensor) -> Tensor:
    sides = []
    for axis, (size, dilation, _) in enumerate(_geometry(layer)):
        around = dilation * (size - 1) - layer.padding[axis]
        sides.append((around, around + layer.output_padding[axis]))
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)))
    spread[(..., *(slice(None, None, stride) for stride in layer.stride))] = x
    return F.pad(spread, list(chain(*reversed(sides)))).contiguous()


def _map_size(layer: Any, padded: Tensor) -> list[int]:
    """The size of a layer's output map."""
    return [
        (length - dilation * (size - 1) - 1) // stride + 1
        for length, (size, dilation, stride) in zip(padded.shape[2:], _geometry(layer), strict=True)
    ]


def count_positions(layer: Any, x: Tensor) -> int:
    """How many patches a layer reads of one image in a batch of its inputs."""
    if isinstance(layer, nn.Linear):
        return x[0].numel() // x.shape[-1]
    return prod(_map_size(layer, _padded(layer, x[:1, :1])))


def _drawn_positions(layer: nn.Module, x: Tensor, positions: int | None, generator: torch.Generator) -> Tensor | None:
    if positions is None or isinstance(layer, nn.Linear):
        return None
    count = count_positions(layer, x)
    if positions >= count:
        return None
    return torch.randperm(count, generator=generator)[:positions].sort().values.to(x.device)


def _parts_in_memory(layer: Any, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A batch and its targets in parts whose patches fit the memory meant for them."""
    if isinstance(layer, nn.Linear):
        size = len(x)
    else:
        row = x.shape[1] * prod(layer.kernel_size) * x.element_size()
        size = max(1, _PATCH_BYTES // (row * count_positions(layer, x)))
    return zip(x.split(size), [None] * -(-len(x) // size) if y is None else y.split(size), strict=True)
