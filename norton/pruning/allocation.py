"""How many filters each layer keeps: from rates, or from one threshold over the whole network."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd, lcm

import numpy as np
from torch import nn

from norton.common.checks import is_number
from norton.common.errors import InputError
from norton.graph.wiring import Wiring
from norton.pruning.alignment import Edge, aligned_keep
from norton.pruning.options import PruneOptions
from norton.pruning.rates import parse_rates, pruned_width

MIN_FILTERS = 8
Rates = float | list[float] | dict[str, float | None]

_NO_LAYERS = (
    "its forward pass calls no convolution or linear layer of its own; a function that was set as forward, such as a "
    "compiled one, calls those of the network it was made from: prune that"
)


def read_rates(rates: str | float | Sequence[float] | Mapping[str, float | None]) -> Rates:
    """A number, a list as published, or patterns of layer names with a number each; InputError for anything else."""
    if isinstance(rates, Mapping):
        if not rates:
            raise InputError("compress_rate: no patterns; write e.g. {layer1.*: 0.3, '*': 0.5}")
        return {
            str(pattern): None if rate is None else _one_rate(rate, f"pattern {pattern!r}")
            for pattern, rate in rates.items()
        }
    if isinstance(rates, int | float) and not isinstance(rates, bool):
        return _one_rate(rates, "the rate")
    return parse_rates(rates)


def _one_rate(rate: float, where: str) -> float:
    if not is_number(rate) or not 0 <= rate < 1:
        raise InputError(
            f"compress_rate: {where} is {rate!r}; a rate is the fraction of filters removed, at least 0 and below 1"
        )
    return float(rate)


def prunable(wiring: Wiring) -> list[int]:
    """The axes that can be cut: those not said to be whole.

    No layer needs to read one: the queries and keys of an attention meet each other, and only their products go on.
    """
    frozen = wiring.frozen
    return [axis for axis in wiring.writers if axis not in frozen]


@dataclass(frozen=True)
class Allocation:
    """How widths follow from rates; the arguments of `norton.prune` that say so, named as there."""

    compress_rate: Rates | None
    options: PruneOptions = PruneOptions()

    def __post_init__(self) -> None:
        if self.is_global and not isinstance(self.compress_rate, float):
            raise InputError(
                f"allocation=global takes one number for the whole network, not compress_rate={self.compress_rate!r}; "
                "give e.g. compress_rate=0.5"
            )

    @property
    def least(self) -> int:
        """Filters that a layer keeps at least; a published list stays exact."""
        if self.options.min_filters is not None:
            return self.options.min_filters
        return 1 if isinstance(self.compress_rate, list) else MIN_FILTERS

    def least_units(self, filters: Sequence[int]) -> int:
        """The same in units of an axis; filters: of a unit, in each layer that writes it."""
        return -(-self.least // min(filters))

    def step(self, filters: Sequence[int]) -> int:
        """The units by which a width moves, so that each layer's filters are a multiple of `round_to`."""
        return lcm(*(self.options.round_to // gcd(self.options.round_to, count) for count in filters))

    @property
    def is_global(self) -> bool:
        return self.options.allocation == "global"

    def rated(self, net: nn.Module, wiring: Wiring) -> dict[int, int]:
        """Axis → channels kept, for the axes that lose some; all that can be cut where the scores are to decide.

        Raises InputError for rates that do not fit the network.
        """
        asked = self._asked(net, wiring)
        if self.is_global:
            return asked
        widths = {axis: self.limited(width, wiring.width(axis), wiring.filters(axis)) for axis, width in asked.items()}
        return {axis: width for axis, width in widths.items() if width != wiring.width(axis)}

    def spared(self, net: nn.Module, wiring: Wiring) -> dict[str, str]:
        """First writer of each axis that would lose channels, but keeps all by min_filters or round_to → why."""
        found = {}
        for axis, width in self._asked(net, wiring).items():
            now, filters = wiring.width(axis), wiring.filters(axis)
            if self.least_units(filters) >= now and (width < now or self.is_global):
                has = f"{now * filters[0]} filters" + (f" in groups of {filters[0]}" if filters[0] > 1 else "")
                found[wiring.name(axis)] = f"it has {has}, and min_filters={self.least} stay"
            elif not self.is_global and width < now == self.limited(width, now, filters):
                found[wiring.name(axis)] = (
                    f"round_to={self.options.round_to} takes its width back to all {now * filters[0]}"
                )
        return found

    def _asked(self, net: nn.Module, wiring: Wiring) -> dict[int, int]:
        """Axis → channels that rates alone would leave; as they are now where the scores are to decide."""
        if self.compress_rate is None:
            return {}
        now = {axis: wiring.width(axis) for axis in prunable(wiring)}
        if not now and not isinstance(self.compress_rate, list):
            reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(wiring.left_whole.items())[:3])
            raise InputError(f"none of its {len(wiring.writers)} channel axes can be pruned: {reasons or _NO_LAYERS}")
        if self.is_global:
            return now
        if isinstance(self.compress_rate, list):
            return _published_widths(net, wiring, self.compress_rate)
        if isinstance(self.compress_rate, dict):
            return _pattern_widths(wiring, now, self.compress_rate)
        return {axis: pruned_width(width, self.compress_rate) for axis, width in now.items()}

    def widths(self, wiring: Wiring, rated: Mapping[int, int], scores: Mapping[int, np.ndarray]) -> dict[int, int]:
        """Axis → channels kept, once the scores are known; those that go whatever the rates say are gone."""
        if isinstance(self.compress_rate, float) and self.is_global:
            filters = {axis: wiring.filters(axis) for axis in scores}
            each = {axis: min(counts) for axis, counts in filters.items()}
            rated = {
                axis: self.limited(width, len(scores[axis]), filters[axis])
                for axis, width in global_widths(scores, self.compress_rate, self.least, each).items()
            }
        left = {axis: int((score > -np.inf).sum()) for axis, score in scores.items()}
        return {axis: min(rated.get(axis, len(score)), left[axis]) for axis, score in scores.items()}

    def limited(self, width: int, now: int, filters: Sequence[int] = (1,)) -> int:
        """A width not below the least, rounded to a multiple; one that is whole stays whole.

        width, now: in units; filters: of a unit, in each layer that writes the axis.
        """
        least, step = min(self.least_units(filters), now), self.step(filters)
        width = max(width, least)
        if width >= now or step == 1:
            return min(width, now)
        down = width // step * step
        up = down if down == width else down + step
        nearer = down if width - down < up - width else up
        width = {"up": up, "down": down, "nearest": nearer}[self.options.rounding]
        while width < least:
            width += step
        return min(width, now)


def _published_widths(net: nn.Module, wiring: Wiring, rates: list[float]) -> dict[int, int]:
    if not hasattr(net, "target_widths"):
        raise InputError(
            f"compress_rate: {type(net).__name__} has no published list of rates; give one number for all layers, "
            "compress_rate=0.5, or one per pattern of layer names"
        )
    targets = net.target_widths(net.check_rates(rates))
    return {wiring.axis_of(layer): width for layer, width in targets.items()}


def _pattern_widths(wiring: Wiring, now: Mapping[int, int], rates: Mapping[str, float | None]) -> dict[int, int]:
    """The first pattern that matches one of an axis' layers decides; an axis that none matches stays whole."""
    layers = [layer for axis in now for layer in wiring.writers[axis]]
    for pattern in rates:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            raise InputError(
                f"compress_rate: pattern {pattern!r} matches no layer that can be pruned; there are {len(layers)}: "
                f"{_some(layers)}"
            )
    widths = {}
    for axis, width in now.items():
        own = (r for p, r in rates.items() if any(fnmatchcase(layer, p) for layer in wiring.writers[axis]))
        widths[axis] = pruned_width(width, next(own, None) or 0.0)
    return widths


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def global_widths(
    scores: Mapping[int, np.ndarray], rate: float, least: int, filters: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Axis → units kept when the lowest scores of all axes go, until `rate` of all filters has gone.

    scores: axis → (units,) comparable between axes.  filters: axis → filters of a unit, where not 1; one that stands
    for several tied layers counts once.  No axis goes below `least` filters, one that has fewer stays whole; of equal
    scores those of earlier axes go first.

    Raises InputError where so many cannot go.
    """
    filters = dict.fromkeys(scores, 1) | dict(filters or {})
    widths = {axis: len(score) for axis, score in scores.items()}
    stay = {axis: -(-least // count) for axis, count in filters.items()}
    total = sum(width * filters[axis] for axis, width in widths.items())
    going = total - pruned_width(total, rate)
    possible = sum(max(0, width - stay[axis]) * filters[axis] for axis, width in widths.items())
    if going > possible:
        raise InputError(
            f"compress_rate: {rate} of {total} filters are {going}, with min_filters={least} only {possible} can go; "
            f"use a rate of at most {possible / max(total, 1):.3f} or a lower min_filters"
        )
    owners: np.ndarray = np.repeat(list(widths), list(widths.values()))
    order = np.argsort(np.concatenate([*scores.values(), []]), kind="stable")
    for axis in owners[order]:
        if going <= 0:
            break
        if widths[axis] > stay[axis]:
            widths[axis] -= 1
            going -= filters[axis]
    return widths


def fitting_keep(
    now: Mapping[int, int],
    targets: Mapping[int, int],
    scores: Mapping[int, np.ndarray],
    edges: Sequence[Edge],
    name: str,
    *,
    least: Mapping[int, int],
    step: int = 1,
    must: Mapping[int, Iterable[int]] | None = None,
) -> dict[int, list[int]]:
    """Channels to keep of axes joined by crop-or-pad shortcuts, at the widths nearest to the targets that fit.

    As `aligned_keep`, for targets that nobody published.  least: axis → the smallest width allowed.  step: by which
    widths may move.  must: axis → channels that have to be kept.
    """
    must = must or {}
    for widths in _nearby(now, targets, least, step):
        try:
            keep = aligned_keep(now, widths, scores, edges, name)
        except InputError:
            continue
        if all(set(must[axis]) <= set(keep[axis]) for axis in must):
            return keep
    return {axis: list(range(width)) for axis, width in now.items()}


def _nearby(
    now: Mapping[int, int], targets: Mapping[int, int], least: Mapping[int, int], step: int
) -> Iterator[dict[int, int]]:
    """Widths in the order of their distance from the targets: first all near ones, then ever wider."""
    axes = list(targets)
    moves = sorted(
        itertools.product(range(-2, 3), repeat=len(axes)), key=lambda move: (np.abs(move).sum(), [-m for m in move])
    )
    seen = set()
    for move in itertools.chain(moves, ((m,) * len(axes) for m in range(3, max(now.values()) + 1))):
        widths = {a: min(now[a], targets[a] + m * step) for a, m in zip(axes, move, strict=True)}
        if all(widths[a] >= min(least[a], targets[a]) for a in axes) and tuple(widths.values()) not in seen:
            seen.add(tuple(widths.values()))
            yield widths
