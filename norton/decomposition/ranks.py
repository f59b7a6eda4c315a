"""Ranks as people ask for them: a number, a list of numbers, or a rule that says what a good rank is.

A rule is a mapping of its name to a number, such as `{"fraction": 0.25}`.  A new one is a function here, registered by
`@rule(name, least, most)`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.checks import is_number
from norton.common.errors import InputError
from norton.common.registry import Registry
from norton.decomposition.layers import energies
from norton.decomposition.methods import DECOMPOSITIONS, check_rank, kind, matching_layers
from norton.decomposition.vbmf import vbmf_rank
from norton.decomposition.weight_errors import weight_nmse
from norton.graph.copies import copied
from norton.graph.inputs import Example
from norton.graph.layers import groups_of, network_in, weight_of

RULES = Registry("rank rule")

Rank = int | list[int]
RankSetting = int | Sequence[int] | Mapping[str, float]
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class RankRule:
    """least, most: the numbers it takes.  find: (method's class, layer, number, decomposed) → ranks, where
    decomposed(ranks) is the layer decomposed at them."""

    least: float
    most: float
    find: Callable[[Any, nn.Module, float, Callable], Ranks]


def rule(name: str, least: float, most: float) -> Callable:
    def add(find: Callable) -> Callable:
        RULES.register(name)(RankRule(least, most, find))
        return find

    return add


def layer_ranks(
    net: nn.Module,
    rank: RankSetting | Mapping[str, RankSetting | None],
    skip: Iterable[str] | None = None,
    method: str = "cp",
    **options: Any,
) -> dict[str, Rank]:
    """Layer → rank, a list of ranks where the method has several, for the layers that are to be decomposed.

    rank: what holds for every layer that the method takes, or patterns of layer names (`layer1.*`) with it each, or
    None to leave them dense; the first pattern that matches a layer decides, and a layer that none matches stays dense.
    Layers that the method does not take, such as depthwise ones, are passed over, unless a pattern names nothing else.
    The rank of a grouped convolution is that of each of its groups.  What can be asked for:

    - a number; where a method has several ranks each is that number or the largest possible;
    - a list with a number for each rank of the method;
    - `{"fraction": f}`: f of the full rank (at which the layer is exact), rounded to the nearest, at least 1;
    - `{"nmse": bound}`: the least rank whose NMSE is within the bound; of several ranks, the first that is on the path
      from all 1 to the full ones by falling singular value of the unfoldings they belong to;
    - `{"vbmf": c}`: what variational Bayesian matrix factorisation finds in those unfoldings, of groups in the one with
      the most, moved down to c of the way to 1 for negative c, up to c of the way to the full rank for positive c;
      where it finds nothing, 1.

    Numbers given for all layers are clipped to the largest possible in each, and must be possible in one; but those of
    `cp`, whose layers all have the same, must be possible in all, as published.

    skip: patterns of layers left dense whatever `rank` says; by default what the network itself spares, and with
    patterns nothing.  options: the method's own, and its seed, which `nmse` depends on.

    Raises InputError for a rank or rule out of range, a rule that the method has not, and a pattern that matches no
    layer.
    """
    net = copied(network_in(net))
    return {
        name: resolve_rank(name, net.get_submodule(name), asked, method, **options)
        for name, asked in layer_rules(net, rank, skip, method).items()
    }


def layer_rules(
    net: nn.Module,
    rank: RankSetting | Mapping[str, RankSetting | None],
    skip: Iterable[str] | None = None,
    method: str = "cp",
    example: Example | None = None,
) -> dict[str, RankSetting]:
    """Layer → what is asked for it, checked as `layer_ranks` does, but before anything is computed."""
    net = network_in(net)
    by_pattern = isinstance(rank, Mapping) and not _is_rule(rank)
    spare = () if by_pattern else getattr(net, "spare", ())
    patterns: Any = rank if by_pattern else {"*": rank}
    found = matching_layers(net, dict(patterns), skip, spare, method, example)
    full = {name: DECOMPOSITIONS[method].full_rank(net.get_submodule(name)) for name in found}
    if DECOMPOSITIONS[method].clips_ranks and not by_pattern and not isinstance(rank, Mapping):
        return _clipped(rank, full, net, method)
    for name, asked in found.items():
        _check(name, net.get_submodule(name), asked, method)
    return found


def resolve_rank(name: str, layer: nn.Module, asked: RankSetting, method: str, **options: Any) -> Rank:
    """The rank of one layer, in numbers."""
    decomposition = DECOMPOSITIONS[method]
    full = decomposition.full_rank(layer)
    if isinstance(asked, Mapping):
        [(kind_of_rule, number)] = asked.items()
        if kind_of_rule != "fraction" and layer.weight.is_meta:
            raise InputError(
                f"{name}: the weights have no values yet, which rank {dict(asked)} depends on; give numbers"
            )
        made = partial(_decomposed, decomposition, layer, name=name, **options)
        ranks = RULES[kind_of_rule].find(decomposition, layer, number, made)
    elif isinstance(asked, int):
        ranks = tuple(min(asked, most) for most in full)
    else:
        ranks = tuple(asked)
    return _plain(_feasible(decomposition, layer, ranks))


def possible_ranks(layer: nn.Module, method: str) -> list[Rank]:
    """A layer's ranks from all 1 to the full ones; where a method has several, those that the rule `nmse` tries."""
    return [_plain(ranks) for ranks in _rank_path(DECOMPOSITIONS[method], layer, 0)[0]]


def _decomposed(decomposition: Any, layer: nn.Module, ranks: Ranks, **options: Any) -> nn.Module:
    return decomposition.from_conv(layer, _plain(ranks), **options)


def _plain(ranks: Ranks) -> Rank:
    """As the plan records it and a method takes it."""
    return ranks[0] if len(ranks) == 1 else list(ranks)


def _feasible(decomposition: Any, layer: nn.Module, ranks: Ranks) -> Ranks:
    return decomposition.feasible(layer, ranks) if hasattr(decomposition, "feasible") else ranks


# Checks


def _is_rule(asked: Mapping) -> bool:
    """Whether a mapping is a rule rather than patterns of layers."""
    return len(asked) == 1 and next(iter(asked)) in RULES


def _clipped(rank: Any, full: Mapping[str, Ranks], net: nn.Module, method: str) -> dict[str, RankSetting]:
    """Numbers for all layers, clipped to what each one has room for: a stem of three channels has little."""
    count = len(next(iter(full.values())))
    if isinstance(rank, list | tuple):
        asked = _counted("rank", rank, count, method)
        most = [{name: ranks[i] for name, ranks in full.items()} for i in range(count)]
    else:
        asked, most = [rank] * count, [{name: max(ranks) for name, ranks in full.items()}] * count
    for number, among in zip(asked, most, strict=True):
        widest = max(among, key=lambda name: among[name])
        check_rank(widest, number, among[widest], kind(net.get_submodule(widest)))
    return {name: _plain(tuple(map(min, asked, ranks))) for name, ranks in full.items()}


def _counted(name: str, asked: Sequence[int], count: int, method: str) -> Sequence[int]:
    if len(asked) != count:
        has = "one rank" if count == 1 else f"{count} ranks"
        raise InputError(f"{name}: rank {list(asked)} has {len(asked)} numbers; decomposition {method!r} has {has}")
    return asked


def _check(name: str, layer: nn.Module, asked: Any, method: str) -> None:
    full = DECOMPOSITIONS[method].full_rank(layer)
    if isinstance(asked, Mapping):
        _check_rule(name, asked, method)
    elif isinstance(asked, list | tuple):
        for rank, most in zip(_counted(name, asked, len(full), method), full, strict=True):
            check_rank(name, rank, most, kind(layer))
    else:
        check_rank(name, asked, max(full), kind(layer))


def _check_rule(name: str, asked: Mapping, method: str) -> None:
    if not _is_rule(asked):
        raise InputError(f"{name}: rank {dict(asked)} is no rule; a rule is one of {', '.join(RULES)} with a number")
    [(kind_of_rule, number)] = asked.items()
    allowed = RULES[kind_of_rule]
    if not is_number(number) or not allowed.least <= number <= allowed.most:
        raise InputError(
            f"{name}: {kind_of_rule} {number!r} is not a number from {allowed.least:g} to {allowed.most:g}"
        )
    if kind_of_rule == "vbmf" and not has_matrices(method):
        those = ", ".join(sorted(other for other in DECOMPOSITIONS if has_matrices(other)))
        raise InputError(f"{name}: vbmf recommends no ranks for decomposition {method!r}; choose one of {those}")


def has_matrices(method: str) -> bool:
    """Whether each rank of a method is that of one matrix, of which VBMF can tell the rank."""
    decomposition = DECOMPOSITIONS[method]
    if not hasattr(decomposition, "unfoldings"):
        return False
    return all(matrix.ndim == 2 for matrix in decomposition.unfoldings(torch.empty(1, 1, 1, 1, device="meta")))


def unfoldings_of(decomposition: Any, layer: nn.Module) -> list[Tensor]:
    """The matrices (n, ..., ...) whose ranks are a method's ranks, those of all groups in one, for each rank."""
    of_groups = [decomposition.unfoldings(group) for group in weight_of(layer).double().chunk(groups_of(layer))]
    return [
        torch.cat([matrix if matrix.ndim == 3 else matrix[None] for matrix in matrices])
        for matrices in zip(*of_groups, strict=True)
    ]


# The rules


@rule("fraction", 0, 1)
def fraction(decomposition: Any, layer: nn.Module, part: float, decomposed: Callable) -> Ranks:
    """A fraction of the full ranks, rounded to the nearest (halves up), at least 1."""
    return tuple(max(1, int(part * full + 0.5)) for full in decomposition.full_rank(layer))


@rule("vbmf", -1, 1)
def vbmf(decomposition: Any, layer: nn.Module, calibration: float, decomposed: Callable) -> Ranks:
    """What VBMF finds in the unfoldings at 0; down to 1 at -1, up to the full rank at 1, linear between."""
    matrices = unfoldings_of(decomposition, layer)
    found = [max(1, *map(vbmf_rank, of_groups)) for of_groups in matrices]
    ends = decomposition.full_rank(layer) if calibration > 0 else [1] * len(found)
    return tuple(int(rank + abs(calibration) * (end - rank) + 0.5) for rank, end in zip(found, ends, strict=True))


@rule("nmse", 0, 1)
@torch.no_grad()
def nmse_bound(decomposition: Any, layer: nn.Module, bound: float, decomposed: Callable) -> Ranks:
    """The first ranks on the path to the full ones at which the decomposed layer meets the bound.

    The error falls along the path, so a search takes a logarithm of its length; each step decomposes the layer.
    """
    if bound == 0:  # rounding errors are larger
        return decomposition.full_rank(layer)
    path, guess = _rank_path(decomposition, layer, bound)

    def meets(place: int) -> bool:
        return weight_nmse(weight_of(layer), weight_of(decomposed(path[place]))) <= bound

    return path[_first_that_meets(meets, len(path), guess)]


def _rank_path(decomposition: Any, layer: nn.Module, bound: float) -> tuple[list[Ranks], int]:
    """Ranks from all 1 to the full ones, each step one rank higher by one; and the place to look first.

    Of several ranks the one is raised whose unfolding has the most energy left.  What is left of all adds up to about
    the error, exactly so for the one rank of a matrix.
    """
    full = decomposition.full_rank(layer)
    if not hasattr(decomposition, "unfoldings"):
        return [(rank,) for rank in range(1, full[0] + 1)], 0
    left = [_energy_left(matrix) for matrix in unfoldings_of(decomposition, layer)]
    steps = [(tail[rank], which) for which, tail in enumerate(left) for rank in range(1, full[which])]
    ranks, guess = [1] * len(full), 0
    path: list[Ranks] = []
    for _, which in [*sorted(steps, key=lambda step: -step[0]), (0, None)]:
        ranks_now = _feasible(decomposition, layer, tuple(ranks))
        if not path or ranks_now != path[-1]:
            path.append(ranks_now)
        if sum(tail[rank] for tail, rank in zip(left, ranks, strict=True)) > bound:
            guess = len(path)
        if which is not None:
            ranks[which] += 1
    return path, guess


def _energy_left(matrix: Tensor) -> list[float]:
    """The part of a matrix's energy, or of all matrices' (O, m, n), that rank 0, 1, 2, ... leaves."""
    found = energies(matrix)
    left = (found.sum(0) if found.ndim == 2 else found).flip(0).cumsum(0).flip(0)
    return [*(left / left[0].clamp_min(torch.finfo(left.dtype).tiny)).tolist(), 0.0]


def _first_that_meets(meets: Callable[[int], bool], count: int, guess: int) -> int:
    """The first of `count` places that meets, the last taken to; from a guess in doubling steps, then halving."""
    low, high, step, first = -1, count - 1, 1, None
    place = min(guess, high - 1)
    while high - low > 1:
        met = meets(place)
        first = met if first is None else first
        low, high = (low, place) if met else (place, high)
        if met == first:
            place += -step if met else step
            step *= 2
        if met != first or not low < place < high:
            place, step = (low + high) // 2, count
    return high
