"""Weights shared by clustering: the weights of a layer take few values.

Source: Deep Compression (Han, Mao, Dally 2016), section 3.  `norton.checkpoints.packing` makes the file small.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from norton.checkpoints.packing import MOST_BITS, saves_room
from norton.common.checks import is_whole_number
from norton.common.errors import InputError
from norton.graph.copies import copied
from norton.graph.layers import is_decomposed

MOST_ROUNDS = 100_000  # of k-means, which ends by itself: trained layers take 1,400, 4 million normal numbers 12,000

Bits = int | Mapping[str, int | None]


@torch.no_grad()
def share_weights(net: nn.Module, bits: Bits) -> nn.Module:
    """A copy of a network in which each weight tensor takes at most 2**bits different values, found by k-means.

    bits: 1 to 8, for all layers, or patterns of layer names (`layer1.*`) with it each, or None to leave them as they
    are; the first pattern that matches a layer decides, and a layer that none matches stays as it is.  The parts of a
    decomposed layer are shared one by one.  Zeros stay zeros, as pruned weights must.  Vectors (biases, BatchNorm) stay
    as they are, and so does what is so small that the values would take more room than they save.

    Raises InputError for other bits, a pattern that matches no layer, and weights that are not finite.
    """
    small = copied(net)
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
    found: dict[str, int | None] = {}
    for pattern, count in rules.items():
        right = is_whole_number(count, 1) and count <= MOST_BITS
        if not right and (count is not None or not isinstance(bits, Mapping)):
            raise InputError(f"bits are {count!r} for {pattern!r}; choose 1 to {MOST_BITS}, or null within patterns")
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            some = ", ".join(names[:4])
            raise InputError(f"bits: pattern {pattern!r} matches none of the {len(names)} layers with weights: {some}")
        found = {**dict.fromkeys(matched, count), **found}
    return {name: count for name in names if (count := found.get(name)) is not None}


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
    values = torch.linspace(ordered[0], ordered[-1], count, dtype=ordered.dtype, device=ordered.device)
    edges = ends[:0]
    for _ in range(MOST_ROUNDS):
        before, inner = edges, torch.searchsorted(ordered, midpoints(values), right=True)
        edges = torch.cat([ends[:1], inner, ends[1:]])
        if torch.equal(before, edges):
            break
        sizes = edges.diff()
        values = torch.where(sizes > 0, sums[edges].diff() / sizes.clamp(min=1), values)
    return values[edges.diff() > 0]


def midpoints(values: Tensor) -> Tensor:
    return (values[1:] + values[:-1]) / 2
