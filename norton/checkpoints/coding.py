"""Storage: weights shared by clustering, and state dicts packed so that a compressor finds what is common.

Deep Compression (Han, Mao, Dally 2016) ends so: the weights of a layer take few values, and the file holds these values
once, and for every weight the number of its own.
"""

import copy
import io
import lzma
from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.errors import InputError
from norton.graph.layers import is_decomposed

MOST_BITS = 8  # a number is stored in a byte
ROUNDS = 100_000  # of k-means, which ends by itself: trained layers take up to 1,400, 4 million normal numbers 12,000

Bits = int | Mapping[str, int | None]


# Sharing


@torch.no_grad()
def share_weights(net: nn.Module, bits: Bits) -> nn.Module:
    """A copy of a network in which each weight tensor takes at most 2**bits different values, found by k-means.

    bits: 1 to 8, for all layers, or patterns of layer names (`layer1.*`) with it each, or None to leave them as they
    are; the first pattern that matches a layer decides, and a layer that none matches stays as it is.  The parts of a
    decomposed layer are shared one by one.  Zeros stay zeros, as pruned weights must.  Vectors (biases, BatchNorm) stay
    as they are, and so does what is so small that the values would take more room than they save.

    Raises InputError for other bits, a pattern that matches no layer, and weights that are not finite.
    """
    small = copy.deepcopy(net)
    weights = layer_weights(small)
    for name, count in layer_bits(net, bits).items():
        for weight in weights[name]:
            if weight.is_meta or not weight.isfinite().all():
                raise InputError(f"{name}: holds weights that are not finite, or none yet; they cannot be shared")
            if saves_room(weight, 2**count):
                weight.copy_(shared(weight, 2**count))
    return small


def layer_weights(net: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Layer → its weights, the parts of a decomposed layer together; vectors are no weights, whatever their shape."""
    decomposed = [name for name, layer in net.named_modules() if is_decomposed(layer)]
    layers: dict[str, list[nn.Parameter]] = {}
    for key, weight in net.named_parameters():
        if weight.is_floating_point() and sum(size > 1 for size in weight.shape) > 1:
            inside = (name for name in decomposed if key.startswith(f"{name}."))
            layers.setdefault(next(inside, key.rpartition(".")[0]), []).append(weight)
    return layers


def layer_bits(net: nn.Module, bits: Bits) -> dict[str, int]:
    """Layer → bits, for the layers that are to be shared; raises InputError as `share_weights` does."""
    rules, names = dict(bits) if isinstance(bits, Mapping) else {"*": bits}, list(layer_weights(net))
    found = {}
    for pattern, count in rules.items():
        right = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST_BITS
        if not right and (count is not None or not isinstance(bits, Mapping)):
            raise InputError(f"bits are {count!r} for {pattern!r}; choose 1 to {MOST_BITS}, or null within patterns")
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            some = ", ".join(names[:4])
            raise InputError(f"bits: pattern {pattern!r} matches none of the {len(names)} layers with weights: {some}")
        found = {**dict.fromkeys(matched, count), **found}
    return {name: found[name] for name in names if found.get(name) is not None}


def saves_room(weight: Tensor, count: int) -> bool:
    """Whether `count` values and a number per weight take less room than the weights."""
    return 8 * count * weight.element_size() + index_bits(count) * weight.numel() < 8 * weight.nbytes


def shared(weight: Tensor, count: int) -> Tensor:
    """A tensor with each entry moved to the nearest of at most `count` values; zeros stay zeros and are one of them."""
    zero = weight == 0
    left = weight[~zero]
    values = cluster(left, count - bool(zero.any())).to(weight.dtype).double()
    nearest = values[torch.bucketize(left.double(), midpoints(values))]
    return torch.zeros_like(weight).masked_scatter_(~zero, nearest.to(weight.dtype))


def cluster(numbers: Tensor, count: int) -> Tensor:
    """At most `count` values that stand for many numbers, ascending, in double precision: k-means in one dimension.

    Lloyd's algorithm from values spread evenly over the range (the linear start of Deep Compression, section 3.2),
    until no number changes its value; a value that no number is nearest to stays where it is and is left out in the
    end.  In sorted numbers a cluster is an interval, and its mean a difference of cumulative sums: after sorting, a
    round takes count·log n.  Few enough different numbers are their own values.
    """
    ordered = numbers.double().flatten().sort().values
    distinct = ordered.unique_consecutive()
    if len(distinct) <= count:
        return distinct
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    ends = torch.tensor([0, len(ordered)], device=ordered.device)
    values, edges = torch.linspace(ordered[0], ordered[-1], count, dtype=ordered.dtype, device=ordered.device), None
    for _ in range(ROUNDS):
        before, inner = edges, torch.searchsorted(ordered, midpoints(values), right=True)
        edges = torch.cat([ends[:1], inner, ends[1:]])
        if before is not None and torch.equal(before, edges):
            break
        sizes = edges.diff()
        values = torch.where(sizes > 0, sums[edges].diff() / sizes.clamp(min=1), values)
    return values[edges.diff() > 0]


def midpoints(values: Tensor) -> Tensor:
    return (values[1:] + values[:-1]) / 2


# Files


def compress(content: bytes) -> bytes:
    """The .xz format, whose checksums find any damage.

    With the least dictionary, because weights repeat nothing from afar: that is no larger, and takes a third of the
    time.
    """
    return lzma.compress(content, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 4096}])


def opened(path: Path) -> Path | io.BytesIO:
    """A file to read a checkpoint from: what is within, where it is compressed.  Raises LZMAError where damaged."""
    with path.open("rb") as file:
        if file.read(6) != b"\xfd7zXZ\0":
            return path
        file.seek(0)
        return io.BytesIO(lzma.decompress(file.read()))


def pack(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The tensors of a state dict as few tensors of bytes, which `unpack` turns back bit by bit.

    What takes few different values is held as these values and a number per entry, several in a byte where they fit.
    The bytes of all others lie by their place in a number: the exponents of weights are much alike, their last digits
    are not.
    """
    table, values, indices = {}, {}, [torch.empty(0, dtype=torch.uint8)]
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
