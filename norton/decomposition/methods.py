"""The contract of a decomposition, and the rules that say which layer gets which rank."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol, Self

from torch import Tensor, nn

from norton.errors import InputError
from norton.registry import Registry

DECOMPOSITIONS = Registry("decomposition")


class DecomposedLayer(Protocol):
    """A layer that takes a convolution's place.

    One whose filters can be compared also has `factors() -> Factors`.  Its slicers (`norton.pruning.surgery`) let it
    be pruned.
    """

    rank: int
    in_channels: int
    out_channels: int
    bias: Tensor | None

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: int) -> Self:
        """The layer for a convolution of this geometry, on its device and in its precision; values undefined."""

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, rank: int, *, name: str, seed: int = 0, **options) -> Self:
        """The layer that approximates `conv`; `name` is for error messages."""

    def composed_weight(self) -> Tensor:
        """(O, C, kh, kw): the weight of the dense convolution this layer equals."""


def decomposable(net: nn.Module) -> dict[str, nn.Conv2d]:
    """Name → convolution, for every k×k convolution (k > 1 in one direction at least) that is not grouped."""
    inside = tuple(f"{name}." for name, layer in net.named_modules() if is_decomposed(layer))
    return {
        name: layer
        for name, layer in net.named_modules(remove_duplicate=False)
        if type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.kernel_size != (1, 1)
        and not name.startswith(inside)
    }


def is_decomposed(layer: nn.Module) -> bool:
    """Whether a layer came out of a decomposition."""
    return hasattr(layer, "composed_weight")


def layer_ranks(
    net: nn.Module, rank: int | Mapping[str, int | None], skip: Iterable[str] | None = None
) -> dict[str, int]:
    """Layer → rank, for the layers that are to be decomposed.

    rank: one number, or patterns of layer names (`layer1.*`) with a number each, or None to leave them dense; the
    first pattern that matches a layer decides, and a layer that none matches stays dense.  skip: patterns of layers
    left dense whatever `rank` says; by default what the network itself spares, and with patterns nothing.

    Raises InputError for a rank out of range and for a pattern that matches no layer.
    """
    layers = decomposable(net)
    rules = dict(rank) if isinstance(rank, Mapping) else {"*": rank}
    if skip is None:
        skip = () if isinstance(rank, Mapping) else getattr(net, "spare", ())
    skip = [skip] if isinstance(skip, str) else list(skip)
    _check_patterns([*rules, *skip], layers, net)
    ranks = {}
    for name, conv in layers.items():
        if any(fnmatchcase(name, pattern) for pattern in skip):
            continue
        value = next((value for pattern, value in rules.items() if fnmatchcase(name, pattern)), None)
        if value is not None:
            ranks[name] = check_rank(name, value, conv.kernel_size)
    if not ranks:
        raise InputError(f"no layer of {type(net).__name__} is left to decompose under rank={rank}, skip={skip}")
    return ranks


def check_rank(name: str, rank: int, kernel: tuple[int, int]) -> int:
    exact = kernel[0] * kernel[1]
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"{name}: rank {rank!r} is not a whole number of at least 1; use null to leave a layer dense")
    if rank > exact:
        size = f"{kernel[0]}x{kernel[1]}"
        raise InputError(f"{name}: rank {rank} exceeds {exact}, at which a {size} filter is exact; use rank <= {exact}")
    return rank


def _check_patterns(patterns: Iterable[str], layers: Mapping[str, nn.Module], net: nn.Module) -> None:
    names = list(layers) or [name for name, layer in net.named_modules() if is_decomposed(layer)]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            some = ", ".join(names[:4]) or "none at all"
            raise InputError(
                f"pattern {pattern!r} matches no convolution that can be decomposed; the network has {len(names)}: "
                f"{some}{', ...' if len(names) > 4 else ''}"
            )
