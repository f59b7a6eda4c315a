"""Second moments of what a layer reads: all that the expected squared error of its output depends on."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PATCH_BYTES = 2**28  # that are held at once


@dataclass
class InputMoments:
    """Moments of the patches x that a layer reads, D = C·kh·kw numbers each as a flattened filter has them.

    second: E[x xᵀ], (D, D); or its diagonal blocks, that many consecutive channels each, where memory would not
    suffice for all.  mean: E[x], (D,).  cross: E[y xᵀ], (O, D), of the outputs y that it should give, without its bias;
    None where those are what its weight gives.  output_mean: E[y], (O,).  rows: how many patches were looked at.
    """

    second: list[Tensor]
    mean: Tensor
    cross: Tensor | None
    output_mean: Tensor | None
    rows: int

    def centred(self) -> "InputMoments":
        """The same of x - E[x] and y - E[y]: what matters where a bias or BatchNorm takes up any constant."""
        second, start = [], 0
        for block in self.second:
            mean = self.mean[start : start + len(block)]
            second.append(block - mean[:, None] * mean)
            start += len(block)
        cross = self.cross
        if cross is not None and self.output_mean is not None:
            cross = cross - self.output_mean[:, None] * self.mean
        return InputMoments(second, self.mean, cross, self.output_mean, self.rows)


@torch.no_grad()
def gather_moments(
    layer: nn.Conv2d | nn.Linear,
    inputs: Iterable[Tensor],
    targets: Iterable[Tensor] | None = None,
    *,
    blocks: int = 1,
    positions: int | None = None,
    seed: int = 0,
) -> InputMoments:
    """The moments of a layer's patches over batches of its inputs, one batch in memory at a time.

    inputs: batches (N, C, H, W) or (N, ..., C).  targets: what the layer's output should be, without its bias.
    blocks: into how many groups of channels the second moments fall apart.  positions: of an output map, as many of
    which are drawn by the seed for each batch; None for all.  Sums are float64.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = block_sizes(layer, blocks)
    sums: list[Tensor] = []
    rows = 0
    for x, y in zip(inputs, repeat(None) if targets is None else targets, strict=False):
        chosen = _drawn_positions(layer, x, positions, generator)
        for part, target in _parts_in_memory(layer, x, y):
            patch = patches(layer, part, chosen)
            found = [piece.mT @ piece for piece in patch.split(sizes, dim=1)] + [patch.sum(0)]
            if target is not None:
                wanted = output_rows(layer, target, chosen)
                found += [wanted.mT @ patch, wanted.sum(0)]
            if not sums:
                sums = [torch.zeros_like(value, dtype=torch.float64) for value in found]
            for total, value in zip(sums, found, strict=True):
                total += value
            rows += len(patch)
    for total in sums:
        total /= rows
    second, (mean, *of_targets) = sums[: len(sizes)], sums[len(sizes) :]
    cross, output_mean = of_targets or (None, None)
    return InputMoments(second, mean, cross, output_mean, rows)


def block_sizes(layer: nn.Conv2d | nn.Linear, blocks: int) -> list[int]:
    """The sizes of so many groups of consecutive channels, in numbers of a flattened filter."""
    channels, positions = layer.weight.shape[1], layer.weight[0, 0].numel()
    return [len(group) * positions for group in torch.empty(channels).tensor_split(min(blocks, channels))]


def patches(layer: nn.Conv2d | nn.Linear, x: Tensor, chosen: Tensor | None = None) -> Tensor:
    """(rows, D): for each position of the output what the layer multiplies its filters with; a linear layer: x itself.

    chosen: positions of the output map, counted row by row; None for all.
    """
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2)
    x = _padded(layer, x)
    (kh, kw), (sh, sw), (dh, dw) = layer.kernel_size, layer.stride, layer.dilation
    height, width = ((x.shape[i + 2] - d * (k - 1) - 1) // s + 1 for i, (k, d, s) in enumerate(_geometry(layer)))
    n, c, down, right = x.stride()
    windows = x.as_strided(
        (len(x), x.shape[1], height, width, kh, kw), (n, c, down * sh, right * sw, down * dh, right * dw)
    )
    if chosen is None:
        return windows.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * kh * kw)
    windows = windows[:, :, chosen // width, chosen % width]
    return windows.permute(0, 2, 1, 3, 4).reshape(-1, x.shape[1] * kh * kw)


def output_rows(layer: nn.Module, y: Tensor, chosen: Tensor | None = None) -> Tensor:
    """(rows, O): a layer's output in the order of `patches`."""
    if isinstance(layer, nn.Linear):
        return y.flatten(0, -2)
    y = y.flatten(2) if chosen is None else y.flatten(2)[:, :, chosen]
    return y.mT.flatten(0, 1)


def _geometry(layer: nn.Conv2d) -> list[tuple[int, int, int]]:
    return list(zip(layer.kernel_size, layer.dilation, layer.stride, strict=True))


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    if layer.padding == "valid":
        return x.contiguous()
    sizes = []  # F.pad wants the last dimension first
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            sizes += [total // 2, total - total // 2]
        else:
            sizes += [layer.padding[axis]] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return F.pad(x, sizes, mode=mode).contiguous()


def count_positions(layer: nn.Conv2d | nn.Linear, x: Tensor) -> int:
    """How many patches a layer reads of one image in a batch of its inputs."""
    if isinstance(layer, nn.Linear):
        return x[0].numel() // x.shape[-1]
    padded = _padded(layer, x[:1, :1])
    count = 1
    for i, (k, d, s) in enumerate(_geometry(layer)):
        count *= (padded.shape[i + 2] - d * (k - 1) - 1) // s + 1
    return count


def _drawn_positions(layer: nn.Module, x: Tensor, positions: int | None, generator: torch.Generator) -> Tensor | None:
    if positions is None or isinstance(layer, nn.Linear):
        return None
    count = count_positions(layer, x)
    if positions >= count:
        return None
    return torch.randperm(count, generator=generator)[:positions].sort().values.to(x.device)


def _parts_in_memory(layer: nn.Module, x: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """A batch and its targets in parts whose patches fit the memory meant for them."""
    if isinstance(layer, nn.Linear):
        size = len(x)
    else:
        row = x.shape[1] * layer.kernel_size[0] * layer.kernel_size[1] * x.element_size()
        size = max(1, _PATCH_BYTES // (row * count_positions(layer, x)))
    return zip(x.split(size), [None] * -(-len(x) // size) if y is None else y.split(size), strict=True)
