"""CP filters for inference in one pass on a GPU, in Triton: 1×1 and rank-one depthwise, R·O channels never in memory.

Imports triton, which comes with torch's CUDA builds; `norton.deployment.exact_forms` imports this module only
where it runs.

How it is cut.  A program takes a tile of M input positions (images × rows × columns) and a block of filters.  For each
term it computes the 1×1 convolution of the tile once, by matrix products in float32 sums, and then moves the result,
which stays on the chip, along the rows for each value of the vertical kernel, and along the columns for each value of
the horizontal one (`tl.gather` along an axis of the tile, which compiles to one shuffle within a warp per value).  It
stores the positions whose neighbours the tile holds.  Multiply-adds per output position, with P the positions computed
per output position:

    dense convolution                           kh·kw·O·C
    1×1 products anew at each kernel position   kh·kw·R·O·C: never fewer than dense, though no value has to move
    here                                        P·R·O·(C + kh + kw)

For batches that fill the GPU and 3×3 kernels, P is stride² where tiles hold whole images (up to 16×16), and 1.3 to 1.6
times that where larger ones are cut into tiles that overlap.  Memory sees the inputs once per filter block and term,
mostly from cache, and the outputs once; the parts one after the other write and read R·O channels in between.

State: it computes what it should in Triton's interpreter.  Of the tiles tried it compiles for capability 9.0 with at
most 16 bytes of registers spilled, for 8.0 with at most 168, in float32 alone.  It has not run on a GPU yet: block
sizes follow from counts, not from measurements, and `norton.deploy` measures it like any other form.
"""

import sys
from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from norton.common.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REACH = 16  # positions of a tile that can be given away to neighbours along an axis
_FILTERS = (64, 32, 16)  # of a program
_POSITIONS = (256, 128, 64)  # of its tile
_READING = 32  # filters
_SUMS = 8192  # float32 sums of a program: 32 for each thread of 8 warps
_CHANNEL_BYTES = 128  # of inputs that a step of the matrix products reads of a position


_Geometry = tuple[int, int, int, int, int, int]  # see `_axis`


class Tile(NamedTuple):
    """What a program computes, all powers of two: images × rows × columns, at least 16 positions, and filters."""

    images: int
    rows: int
    columns: int
    filters: int

    @property
    def positions(self) -> int:
        return self.images * self.rows * self.columns


class _Axis(NamedTuple):
    """How tiles lie along rows or columns of the inputs.

    first: where the first one begins.  step: from one to the next.  own: the place in a tile of its first output, of
    which it has `step`.  tiles: how many.  An output lies at the input under the middle of the kernel.
    """

    first: int
    step: int
    own: int
    tiles: int


@torch.library.custom_op("norton::fused_cp", mutates_args=())
def fused_cp(
    x: Tensor,
    head: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """A convolution with CP filters, zeros around the input: (N, C, H, W) → (N, O, H', W') in channels-last memory.

    head: (O·R, C, 1, 1), term r of filter o at o·R + r.  taps: (R, kh + kw, O'), the vertical and the horizontal kernel
    of each term, O' ≥ O a multiple of 64.  bias: (O,) or None.  padding: top, bottom, left, right.  All of one of the
    `DTYPES`; sums are in float32, and products of float32 in TF32 only where torch's convolutions may use it
    (`torch.backends.cudnn`).  Without gradients.  Raises InputError for shapes and types that do not fit, and for
    kernels that reach further than a tile.
    """
    return launch(x, head, taps, bias, kernel_size, stride, padding, dilation)


@fused_cp.register_fake
def _(
    x: Tensor,
    head: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    height, width = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    return _empty(x, head.shape[0] // taps.shape[0], height, width)


def launch(
    x: Tensor,
    head: Tensor,
    taps: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    tile: Tile | None = None,
) -> Tensor:
    """See `fused_cp`.  tile: by default what should be fastest."""
    _check(x, head, taps, bias, kernel_size, dilation)
    terms, outputs = taps.shape[0], head.shape[0] // taps.shape[0]
    sizes = output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    if min(sizes) < 1:
        raise InputError(f"images of {tuple(x.shape[2:])} are smaller than the kernel of {tuple(kernel_size)}")
    x = x.contiguous(memory_format=torch.channels_last)
    y = _empty(x, outputs, *sizes)
    if not y.numel():
        return y
    axes: list[_Geometry] = [
        (x.shape[2 + i], sizes[i], kernel_size[i], stride[i], dilation[i], padding[2 * i]) for i in range(2)
    ]
    tile = tile or _tile(len(x), outputs, *axes, _processors(x.device))
    rows, columns = _axis(*axes[0], tile.rows), _axis(*axes[1], tile.columns)
    if rows is None or columns is None:
        raise InputError(f"{tile} is too small for a kernel of {tuple(kernel_size)} with dilation {tuple(dilation)}")
    channels = max(16, min(_CHANNEL_BYTES // x.element_size(), triton.next_power_of_2(x.shape[1])))
    programs = triton.cdiv(len(x), tile.images) * rows.tiles * columns.tiles * triton.cdiv(outputs, tile.filters)
    with torch.cuda.device_of(x):
        _kernel[(programs,)](
            *(x, head, taps, bias, y),
            *(len(x), *x.shape[2:], x.shape[1], outputs, *sizes, taps.shape[2]),
            *(*rows, *columns),
            TERMS=terms,
            KH=kernel_size[0],
            KW=kernel_size[1],
            SH=stride[0],
            SW=stride[1],
            DH=dilation[0],
            DW=dilation[1],
            TOP=padding[0],
            LEFT=padding[2],
            IMAGES=tile.images,
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            FILTERS=tile.filters,
            CHANNELS=channels,
            PRECISION=_precision(),
            num_warps=8 if tile.positions * tile.filters >= _SUMS else 4,
            num_stages=_stages(x.device),
            enable_fp_fusion=True,  # newer versions multiply and add in two steps otherwise
        )
    return y


def reaches(kernel_size: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether tiles are large enough for a kernel."""
    return all((k - 1) * d < _REACH for k, d in zip(kernel_size, dilation, strict=True))


def output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    height, width = (
        (size[i] + padding[2 * i] + padding[2 * i + 1] - (kernel_size[i] - 1) * dilation[i] - 1) // stride[i] + 1
        for i in range(2)
    )
    return height, width


def _empty(x: Tensor, outputs: int, height: int, width: int) -> Tensor:
    shape = x.shape[0], outputs, height, width
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _check(
    x: Tensor, head: Tensor, taps: Tensor, bias: Tensor | None, kernel_size: Sequence[int], dilation: Sequence[int]
) -> None:
    """The kernel itself reads wherever it is told."""
    if x.ndim != 4 or x.shape[1] != head.shape[1]:
        raise InputError(
            f"input is {tuple(x.shape)}; a layer of {head.shape[1]} channels takes (N, {head.shape[1]}, H, W)"
        )
    given = [tensor for tensor in (x, head, taps, bias) if tensor is not None]
    if x.dtype not in DTYPES or len({(tensor.dtype, tensor.device) for tensor in given}) > 1:
        found = ", ".join(f"{tensor.dtype} on {tensor.device}" for tensor in given)
        raise InputError(f"input and weights are {found}; give all in one of {', '.join(map(str, DTYPES))} on one GPU")
    terms, outputs = len(taps), len(head) // len(taps)
    whole = taps.shape[1] == sum(kernel_size) and taps.shape[2] >= outputs and taps.shape[2] % max(_FILTERS) == 0
    fits = whole and len(head) == terms * outputs and (bias is None or len(bias) == outputs)
    if not fits or not all(tensor.is_contiguous() for tensor in given[1:]):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given[1:])
        raise InputError(f"weights of shapes {shapes} do not fit a kernel of {tuple(kernel_size)}; pack them anew")
    if not reaches(kernel_size, dilation):
        raise InputError(
            f"a kernel of {tuple(kernel_size)} with dilation {tuple(dilation)} reaches beyond a tile; "
            f"(k - 1)·dilation is to be below {_REACH}"
        )


def _precision() -> str:
    """Of products of float32: what torch allows its convolutions."""
    return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _stages(device: torch.device) -> int:
    """For which two steps of the matrix products are in shared memory at a time: by what the products are made of."""
    return 2 if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10) else 3


@lru_cache
def _tile(images: int, outputs: int, height: _Geometry, width: _Geometry, processors: int) -> Tile:
    """The tile that should be fastest, where each multiprocessor takes one at a time.

    height, width: input and output size, kernel size, stride, dilation, padding before.
    """

    def cost(tile: Tile) -> tuple[int, int]:
        rows, columns = _axis(*height, tile.rows), _axis(*width, tile.columns)
        if rows is None or columns is None:
            return sys.maxsize, 0
        programs = triton.cdiv(images, tile.images) * rows.tiles * columns.tiles * triton.cdiv(outputs, tile.filters)
        # Reading a position takes about as long as computing some filters of it.
        return max(programs, processors) * tile.positions * (tile.filters + _READING), programs

    sides, most = (1, 2, 4, 8, 16, 32), max(_FILTERS[-1], triton.next_power_of_2(outputs))
    return min(
        (
            Tile(positions // (rows * columns), rows, columns, filters)
            for filters, positions, rows, columns in product(_FILTERS, _POSITIONS, sides, sides)
            if filters <= most and filters * positions <= _SUMS and rows * columns <= positions
        ),
        key=cost,
    )


def _axis(size: int, outputs: int, kernel: int, stride: int, dilation: int, padding: int, tile: int) -> _Axis | None:
    """How tiles of a size cover rows or columns; None where they are too small."""
    middle, reach = (kernel - 1) // 2 * dilation, (kernel - 1) * dilation
    first, last = middle - padding, middle - padding + (outputs - 1) * stride
    low, high = min(first, 0), max(last, min(size - 1, last - middle + reach))
    if high - low < tile:
        return _Axis(low, tile, 0, 1)  # all in one: what lies beyond it is padding
    if tile <= reach:
        return None
    return _Axis(-padding, tile - reach, middle, triton.cdiv(last - first + 1, tile - reach))


@triton.jit
def _moved(values, index, offset: tl.constexpr, size: tl.constexpr, axis: tl.constexpr):  # type: ignore[no-untyped-def]
    """The values `offset` further along an axis of a size, zeros beyond it; index: each one's place along it."""
    source = index + offset
    inside = (source >= 0) & (source < size)
    taken = tl.gather(values, tl.broadcast_to(tl.where(inside, source, 0), values.shape), axis)
    return tl.where(inside, taken, 0.0)


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    x,
    head,
    taps,
    bias,
    y,
    images,
    height,
    width,
    channels,
    outputs,
    out_height,
    out_width,
    padded_outputs,
    row_first,
    row_step,
    row_own,
    row_tiles,
    column_first,
    column_step,
    column_own,
    column_tiles,
    TERMS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    DH: tl.constexpr,
    DW: tl.constexpr,
    TOP: tl.constexpr,
    LEFT: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    FILTERS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    MIDDLE_ROW: tl.constexpr = (KH - 1) // 2
    MIDDLE_COLUMN: tl.constexpr = (KW - 1) // 2
    POSITIONS: tl.constexpr = IMAGES * ROWS * COLUMNS
    # Blocks of filters come one after the other, so that they find the inputs in the cache.
    blocks = tl.cdiv(outputs, FILTERS)
    block, place = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    column_tile, place = place % column_tiles, place // column_tiles
    row_tile, image_tile = place % row_tiles, place // row_tiles
    position = tl.arange(0, POSITIONS)
    tile_row, tile_column = position // COLUMNS % ROWS, position % COLUMNS
    image = image_tile * IMAGES + position // (ROWS * COLUMNS)
    row = row_first + row_tile * row_step + tile_row
    column = column_first + column_tile * column_step + tile_column
    inside = (image < images) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = (image.to(tl.int64) * height + row) * width + column
    filters = block * FILTERS + tl.arange(0, FILTERS)
    read_filters = tl.minimum(filters, outputs - 1)  # without a mask, which would take a register per value
    along_rows = tl.arange(0, ROWS)[None, :, None, None]
    along_columns = tl.arange(0, COLUMNS)[None, None, :, None]
    total = tl.zeros((IMAGES, ROWS, COLUMNS, FILTERS), tl.float32)
    for term in range(TERMS):
        pointwise = tl.zeros((POSITIONS, FILTERS), tl.float32)
        for start in range(0, channels, CHANNELS):
            channel = start + tl.arange(0, CHANNELS)
            known = channel < channels
            inputs = tl.load(
                x + pixel[:, None] * channels + channel[None, :], mask=inside[:, None] & known[None, :], other=0.0
            )
            factor = head + (read_filters * TERMS + term)[None, :] * channels + channel[:, None]
            weights = tl.load(factor, mask=known[:, None], other=0.0)
            pointwise = tl.dot(inputs, weights, pointwise, input_precision=PRECISION)
        spread = tl.reshape(pointwise, (IMAGES, ROWS, COLUMNS, FILTERS))
        vertical = tl.zeros((IMAGES, ROWS, COLUMNS, FILTERS), tl.float32)
        values = taps + term * (KH + KW) * padded_outputs + filters
        for i in tl.static_range(KH):
            value = tl.load(values + i * padded_outputs).to(tl.float32)[None, None, None, :]
            if i == MIDDLE_ROW:
                vertical += value * spread
            elif (i - MIDDLE_ROW) * DH < ROWS and (MIDDLE_ROW - i) * DH < ROWS:
                vertical += value * _moved(spread, along_rows, (i - MIDDLE_ROW) * DH, ROWS, 1)
        for j in tl.static_range(KW):
            value = tl.load(values + (KH + j) * padded_outputs).to(tl.float32)[None, None, None, :]
            if j == MIDDLE_COLUMN:
                total += value * vertical
            elif (j - MIDDLE_COLUMN) * DW < COLUMNS and (MIDDLE_COLUMN - j) * DW < COLUMNS:
                total += value * _moved(vertical, along_columns, (j - MIDDLE_COLUMN) * DW, COLUMNS, 2)
    sums = tl.reshape(total, (POSITIONS, FILTERS))
    if bias is not None:
        sums += tl.load(bias + read_filters).to(tl.float32)[None, :]
    # Outputs are computed at every input; stored are those where the stride falls.
    down, right = row + TOP - MIDDLE_ROW * DH, column + LEFT - MIDDLE_COLUMN * DW
    out_row, out_column = down // SH, right // SW
    stored = (image < images) & (down >= 0) & (right >= 0) & (down % SH == 0) & (right % SW == 0)
    stored = stored & (out_row < out_height) & (out_column < out_width)
    stored = stored & (tile_row >= row_own) & (tile_row < row_own + row_step)
    stored = stored & (tile_column >= column_own) & (tile_column < column_own + column_step)
    target = (image.to(tl.int64) * out_height + out_row) * out_width + out_column
    tl.store(
        y + target[:, None] * outputs + filters[None, :],
        sums.to(y.dtype.element_ty),
        mask=stored[:, None] & (filters < outputs)[None, :],
    )
