"""Which channels of each axis stay: as many of the best scores as the widths say, where shortcuts find them."""

from collections.abc import Iterable, Mapping, Sequence
from math import lcm

import numpy as np
import torch
from torch import nn

from norton.common.errors import InputError
from norton.graph.wiring import Wiring
from norton.pruning.alignment import aligned_keep, connected
from norton.pruning.allocation import Allocation, fitting_keep
from norton.pruning.scoring import Scoring, axis_scores, deciding


@torch.no_grad()
def choose_channels(
    net: nn.Module, wiring: Wiring, rated: Mapping[int, int], how: Allocation, scoring: Scoring
) -> dict[int, list[int]]:
    """Axis → channels kept, in their new order, for the axes that change.

    rated: axis → channels to keep; axes that are not named keep all, but for filters that go whatever the rates say.
    """
    named = (wiring.axis_at(wiring.written(layer))[list(filters)] for layer, filters in scoring.named.items())
    changed = set(rated).union(*(found.tolist() for found in named))
    bound = [axes for axes in connected(wiring.shifts) if axes & changed]
    axes = sorted(changed.union(*bound))
    rankings, wanted = [], []
    for criterion in deciding(scoring.criterion):
        rankings.append(axis_scores(net, wiring, axes, criterion, scoring))
        widths = how.widths(wiring, rated, rankings[-1])
        if empty := [axis for axis, width in widths.items() if not width]:
            raise InputError(f"{wiring.name(empty[0])}: all its filters are named, in it and in layers that are summed")
        wanted.append(kept_channels(wiring, rankings[-1], widths, bound, how))
    if len(wanted) == 1:
        return wanted[0]
    together = {axis: np.mean([ranking[axis] for ranking in rankings], axis=0) for axis in axes}
    return kept_by_any(wiring, wanted, together, bound, how)


def kept_channels(
    wiring: Wiring,
    ranking: Mapping[int, np.ndarray],
    widths: Mapping[int, int],
    bound: Sequence[set[int]],
    how: Allocation,
) -> dict[int, list[int]]:
    """Axis → the channels of the highest scores, as many as its width says, for the axes that change."""
    keep = {
        axis: sorted(np.argsort(-ranking[axis], kind="stable")[: widths[axis]].tolist())
        for axis in ranking
        if widths[axis] != wiring.width(axis) and not any(axis in axes for axes in bound)
    }
    for axes in bound:
        now = {axis: wiring.width(axis) for axis in axes}
        targets = {axis: widths.get(axis, now[axis]) for axis in axes}
        if targets == now:
            continue
        edges = [edge for edge in wiring.shifts if edge[0] in axes]
        own = {axis: _finite(ranking[axis]) for axis in axes}
        name = wiring.name(min(axes))
        if isinstance(how.compress_rate, float | dict):
            least = {axis: min(how.least_units(wiring.filters(axis)), now[axis]) for axis in axes}
            found = fitting_keep(now, targets, own, edges, name, least=least, step=_common_step(wiring, axes, how))
        else:
            found = aligned_keep(now, targets, own, edges, name)
        _check_gone(wiring, found, ranking)
        keep |= found
    return keep


def _finite(score: np.ndarray) -> np.ndarray:
    """Scores with -inf, which a solver cannot add, far below all others."""
    others = score[score > -np.inf]
    return np.where(score > -np.inf, score, others.min() - 1000 * (1 + np.ptp(others)))


def _check_gone(wiring: Wiring, keep: Mapping[int, Sequence[int]], ranking: Mapping[int, np.ndarray]) -> None:
    for axis, channels in keep.items():
        if stays := [channel for channel in channels if ranking[axis][channel] == -np.inf]:
            raise InputError(
                f"{wiring.name(axis)}: filter {stays[0]} cannot go without others, because shortcuts move the channels "
                "of its stream by position; name the same number in the streams it meets"
            )


def kept_by_any(
    wiring: Wiring,
    wanted: Sequence[Mapping[int, Sequence[int]]],
    ranking: Mapping[int, np.ndarray],
    bound: Sequence[set[int]],
    how: Allocation,
) -> dict[int, list[int]]:
    """Axis → the channels that any of several choices keeps, for the axes that change.

    More stay, by `ranking`, where widths are rounded (up, for no more may go), and where shortcuts ask for it.
    """
    now = {axis: wiring.width(axis) for axis in ranking}
    must = {
        axis: sorted(set().union(*(keep.get(axis, range(width)) for keep in wanted))) for axis, width in now.items()
    }
    first = {axis: _put_first(score, must[axis]) for axis, score in ranking.items()}
    steps = {axis: how.step(wiring.filters(axis)) for axis in now}
    targets = {axis: min(-(-len(must[axis]) // steps[axis]) * steps[axis], now[axis]) for axis in now}
    keep = {
        axis: sorted(np.argsort(-first[axis], kind="stable")[:width].tolist())
        for axis, width in targets.items()
        if width < now[axis] and not any(axis in axes for axes in bound)
    }
    for axes in bound:
        own, new = ({axis: all_of[axis] for axis in axes} for all_of in (now, targets))
        least = {axis: must[axis] for axis in axes}
        if own == new:
            continue
        edges = [edge for edge in wiring.shifts if edge[0] in axes]
        lowest = {axis: len(channels) for axis, channels in least.items()}
        scored = {axis: first[axis] for axis in axes}
        name = wiring.name(min(axes))
        keep |= fitting_keep(
            own, new, scored, edges, name, least=lowest, step=_common_step(wiring, axes, how), must=least
        )
    return keep


def _common_step(wiring: Wiring, axes: Iterable[int], how: Allocation) -> int:
    return lcm(*(how.step(wiring.filters(axis)) for axis in axes))


def _put_first(score: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Scores in which the given channels stand above all others, which keep their order."""
    chosen = np.isin(np.arange(len(score)), channels)
    return score + chosen * (1 + np.ptp(score)) * 1000
