"""The contract of a decomposition, and which layers of a network it takes."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from norton.common.checks import is_whole_number
from norton.common.errors import InputError, warn
from norton.common.registry import Registry
from norton.graph.copies import computed_otherwise
from norton.graph.declarations import inside_declared
from norton.graph.inputs import Example
from norton.graph.layers import is_decomposed, torch_kind
from norton.graph.reading import weights_read

DECOMPOSITIONS = Registry("decomposition")
WEIGHTED = (_ConvNd, nn.Linear)


class DecomposedLayer(Protocol):
    """A layer that takes the place of a convolution or a linear layer.

    Most methods inherit all but the mathematics, surgery included, from a class of `norton.decomposition.layers`.  One
    whose filters can be compared by their CP factors also has `factors() -> Factors`.  One whose ranks are those of
    unfoldings of the weight has a class method `unfoldings(weight) -> list of matrices`, one per rank, of the weight of
    one group, filters first; `vbmf` needs it, and `nmse` then finds several ranks at once.  One of whose ranks another
    one limits has a class method `feasible(layer, ranks)` that clips them.

    A number for all layers is clipped to what each has room for, unless `clips_ranks` is False.  by_filter: whether
    each filter is decomposed by itself, so that some tell of all.  comparison_options: defaults of options where many
    ranks are fitted to outputs only to compare them.

    rank: one number, or a tuple where the method has several.  takes: the layers it is for, as messages say it.
    """

    rank: int | tuple[int, ...]
    bias: Tensor | None
    takes: str
    clips_ranks: ClassVar[bool]
    by_filter: ClassVar[bool]
    comparison_options: ClassVar[dict[str, Any]]

    @classmethod
    def accepts(cls, layer: nn.Module) -> bool:
        """Whether a layer can be decomposed by this method."""

    @classmethod
    def full_rank(cls, layer: nn.Module) -> tuple[int, ...]:
        """The ranks at which the layer is exact, of which there is never need for more."""

    @classmethod
    def shaped_like(cls, conv: nn.Module, rank: int | list[int]) -> Self:
        """The layer for one of this geometry, on its device and in its precision; values undefined."""

    @classmethod
    def from_conv(cls, conv: nn.Module, rank: int | list[int], *, name: str, seed: int = 0, **options: Any) -> Self:
        """The layer that approximates `conv`; `name` is for error messages."""

    def composed_weight(self) -> Tensor:
        """The weight of the dense layer this one equals, as that holds it: (O, C / groups, kh, kw) or (O, C), ...

        Of a transposed convolution (C, O / groups, kh, kw).
        """


def is_convolution(layer: Any, kinds: Sequence[type[nn.Module]]) -> bool:
    """Whether a layer computes as one of these kinds of convolutions, and is not depthwise.

    A depthwise filter reads one channel, so that there are none to take together.
    """
    return torch_kind(layer) in kinds and (layer.groups == 1 or layer.groups < layer.in_channels)


def has_kernel(layer: Any) -> bool:
    """Whether a convolution is wider than 1 in one direction at least."""
    return any(size > 1 for size in layer.kernel_size)


def is_spatial(layer: Any) -> bool:
    """Whether a layer is a 2-D convolution with a kernel that is neither grouped nor transposed."""
    return is_convolution(layer, (nn.Conv2d,)) and layer.groups == 1 and has_kernel(layer)


def decomposable(net: nn.Module, method: str = "cp") -> dict[str, nn.Module]:
    """Name → layer, for every layer that the method accepts and that is not part of a decomposed one."""
    return {name: layer for name, layer in _outside(net).items() if DECOMPOSITIONS[method].accepts(layer)}


def matching_layers(
    net: nn.Module,
    rules: Mapping[str, Any],
    skip: Iterable[str] | str | None,
    spare: Iterable[str],
    method: str,
    example: Example | None = None,
) -> dict[str, Any]:
    """Layer → what the first pattern of `rules` that matches it says, for the layers that are to be decomposed.

    skip: patterns of layers left dense; if None those of `spare`, which need not match any.  Layers that nothing can
    take the place of stay dense, with a warning, see `left_whole`.  Raises InputError for a pattern that matches no
    layer that the method takes, and if no layer is left.
    """
    layers = decomposable(net, method)
    chosen = [] if skip is None else [skip] if isinstance(skip, str) else list(skip)
    _check_patterns([*rules, *chosen], layers, net, method)
    skip, found = list(spare) if skip is None else chosen, {}
    for name in layers:
        if any(fnmatchcase(name, pattern) for pattern in skip):
            continue
        rule = next((rule for pattern, rule in rules.items() if fnmatchcase(name, pattern)), None)
        if rule is not None:
            found[name] = rule
    whole = left_whole(net, {name: layers[name] for name in found}, example)
    told = "; ".join(f"{name}: {reason}" for name, reason in list(whole.items())[:3])
    if whole and len(whole) == len(found):
        raise InputError(f"no layer that is asked for can be decomposed: {told}")
    if whole:
        warn(f"{len(whole)} of {len(found)} layers left whole: {told}{'; ...' if len(whole) > 3 else ''}")
    found = {name: rule for name, rule in found.items() if name not in whole}
    if not found:
        rank = dict(rules) if list(rules) != ["*"] else rules["*"]
        raise InputError(
            f"no layer of {type(net).__name__} is left to decompose under rank={rank}, skip={skip}; "
            f"decomposition {method!r} takes {DECOMPOSITIONS[method].takes}"
        )
    return found


def left_whole(net: nn.Module, layers: Mapping[str, nn.Module], example: Example | None = None) -> dict[str, str]:
    """Layer → why no decomposed one can take its place, for those of these layers where that is so."""
    unknown = {
        name: "its weight is no parameter, nor computed by one of torch's hooks"
        for name, layer in layers.items()
        if computed_otherwise(layer)
    }
    read = weights_read(net, {name: layer for name, layer in layers.items() if name not in unknown}, example)
    lines = {name: f"the network takes its weight other than by calling it, at {line}" for name, line in read.items()}
    return {name: (unknown | lines)[name] for name in layers if name in unknown or name in lines}


def check_rank(name: str, rank: int, full: int, what: str) -> int:
    """The rank, or an InputError that says which are allowed; what: that is exact at the full one."""
    if not is_whole_number(rank, 1):
        raise InputError(f"{name}: rank {rank!r} is not a whole number of at least 1; use null to leave a layer dense")
    if rank > full:
        raise InputError(f"{name}: rank {rank} exceeds {full}, at which {what} is exact; use rank <= {full}")
    return rank


def _outside(net: nn.Module) -> dict[str, nn.Module]:
    """Name → module, without the parts of decomposed layers, and without declared layers and theirs."""
    inside = tuple(f"{name}." for name, layer in net.named_modules() if is_decomposed(layer))
    declared = dict(inside_declared(net))
    modules = net.named_modules(remove_duplicate=False)
    return {n: layer for n, layer in modules if not n.startswith(inside) and n not in declared}


def _check_patterns(patterns: Iterable[str], layers: Mapping[str, nn.Module], net: nn.Module, method: str) -> None:
    names = list(layers) or [name for name, layer in net.named_modules() if is_decomposed(layer)]
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        others = {n: x for n, x in _outside(net).items() if isinstance(x, WEIGHTED) and fnmatchcase(n, pattern)}
        for name, layer in others.items():  # asked for, but by its kind impossible
            raise InputError(
                f"{name}: decomposition {method!r} does not take {kind(layer)}; it takes {DECOMPOSITIONS[method].takes}"
            )
        some = ", ".join(names[:4]) or "none at all"
        raise InputError(
            f"pattern {pattern!r} matches no convolution that can be decomposed; the network has {len(names)}: "
            f"{some}{', ...' if len(names) > 4 else ''}"
        )


def kind(layer: _ConvNd | nn.Linear) -> str:
    """A layer in words, for messages."""
    own = ", with a forward pass of its own" if torch_kind(layer) is None else ""
    if isinstance(layer, nn.Linear):
        return f"a linear layer of {layer.in_features} inputs and {layer.out_features} outputs{own}"
    size, dims = "x".join(map(str, layer.kernel_size)), len(layer.kernel_size)
    what = f"{size} convolution" if dims == 2 else f"{dims}-D convolution with a kernel of {size},"
    how = "transposed " if isinstance(layer, _ConvTransposeNd) else ""
    groups = f" in {layer.groups} groups" if layer.groups > 1 else ""
    return f"a {how}{what} of {layer.in_channels} to {layer.out_channels} channels{groups}{own}"
