"""State dicts packed so that a compressor finds what is common: values once, bytes by their place in a number."""

import io
import lzma
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MOST_BITS = 8  # a number is stored in a byte
XZ = b"\xfd7zXZ\0"  # how compressed files begin


def compress(content: bytes) -> bytes:
    """The .xz format, whose checksums find any damage.

    With the least dictionary, because weights repeat nothing from afar: that is no larger, and takes a third of the
    time.
    """
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 4096}])


def decompressed(path: Path) -> Path | io.BytesIO:
    """A file to read a checkpoint from: what is within, where it is compressed.  Raises LZMAError where damaged."""
    with path.open("rb") as file:
        if file.read(len(XZ)) != XZ:
            return path
        file.seek(0)
        return io.BytesIO(lzma.decompress(file.read()))


def pack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of a state dict as few tensors of bytes, which `unpack` turns back bit by bit.

    What takes few different values is held as these values and a number per entry, several in a byte where they fit.
    The bytes of all others lie by their place in a number: the exponents of weights are much alike, their last digits
    are not.
    """
    table: dict[str, list] = {}
    values: dict[str, list[Tensor]] = {}
    indices = [torch.empty(0, dtype=torch.uint8)]
    for name, tensor in state.items():
        flat, count = tensor.flatten(), 0
        if (found := distinct_values(flat)) is not None:
            flat, index = found
            count = len(flat)
            indices.append(join_bits(index, index_bits(count)))
        dtype = str(tensor.dtype).removeprefix("torch.")
        table[name] = [dtype, list(tensor.shape), count]
        values.setdefault(dtype, []).append(flat)
    planes = {dtype: byte_planes(torch.cat(flats)) for dtype, flats in values.items()}
    return {"tensors": table, "values": planes, "indices": torch.cat(indices)}


def unpack(packed: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict that was packed.  What `pack` did not give raises one of many errors, for `read` to catch."""
    values = {dtype: from_planes(planes, dtype) for dtype, planes in packed["values"].items()}
    indices, state = packed["indices"], {}
    for name, (dtype, shape, count) in packed["tensors"].items():
        length = count or prod(shape)
        flat, values[dtype] = values[dtype][:length], values[dtype][length:]
        if count:
            bits = index_bits(count)
            stored = -(-prod(shape) // (8 // bits))
            flat, indices = flat[split_bits(indices[:stored], bits)[: prod(shape)]], indices[stored:]
        state[name] = flat.reshape(shape).clone()
    if len(indices) or any(map(len, values.values())):
        raise ValueError("more than the tensors need")
    return state


def distinct_values(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """The different values of a tensor by their bits, and for each entry the number of its own; None if too many."""
    most = 2**MOST_BITS
    if not flat.is_floating_point() or len(flat) <= 1 or len(as_bits(flat[: 16 * most]).unique()) > most:
        return None
    values, index = as_bits(flat).unique(return_inverse=True)
    values = values.view(flat.dtype)
    return (values, index) if len(values) <= most and saves_room(flat, len(values)) else None


def as_bits(flat: Tensor) -> Tensor:
    """The same bits as whole numbers: -0.0 is not 0.0, and a NaN is itself."""
    return flat.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()])


def saves_room(weight: Tensor, count: int) -> bool:
    """Whether `count` values and a number per weight take less room than the weights."""
    return 8 * count * weight.element_size() + index_bits(count) * weight.numel() < 8 * weight.nbytes


def index_bits(count: int) -> int:
    """The bits of a number below `count`, at least one."""
    return max(1, (count - 1).bit_length())


def join_bits(index: Tensor, bits: int) -> Tensor:
    """Whole numbers of so many bits as bytes, as many in each as fit whole."""
    digits = nn.functional.pad(index, (0, -len(index) % (8 // bits))).view(-1, 8 // bits)
    return (digits << bits * torch.arange(8 // bits)).sum(1).to(torch.uint8)


def split_bits(joined: Tensor, bits: int) -> Tensor:
    """What `join_bits` was given, zeros behind it."""
    return (joined.long()[:, None] >> bits * torch.arange(8 // bits) & 2**bits - 1).flatten()


def byte_planes(flat: Tensor) -> Tensor:
    """(n,) → (bytes of a number, n)."""
    return flat.contiguous().view(torch.uint8).view(-1, flat.element_size()).T.contiguous()


def from_planes(planes: Tensor, dtype: str) -> Tensor:
    kind = getattr(torch, dtype)
    if not isinstance(kind, torch.dtype):
        raise ValueError(f"no type of numbers is called {dtype!r}")
    return planes.T.contiguous().flatten().view(kind)
