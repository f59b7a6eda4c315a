"""Pruning: choose the filters that can go, and remove them from the network for good."""

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from math import lcm
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from norton.calibration import Calibration, check_images
from norton.calibration.compensation import compensated
from norton.common.errors import InputError, warn
from norton.graph import wiring_of
from norton.graph.input_sizes import Example
from norton.graph.plan import record_step
from norton.graph.slicing import cut_
from norton.graph.wiring import Wiring
from norton.pruning.alignment import aligned_keep, connected
from norton.pruning.allocation import Allocation, fitting_keep, prunable, read_rates
from norton.pruning.criteria.index import parse_filters
from norton.pruning.criteria.kinds import CRITERIA, filter_count, keep_filters, scores
from norton.pruning.options import Criterion, PruneOptions, Pruning
from norton.pruning.published import SELECTIONS
from norton.pruning.scoring import Scoring, asks_for, axis_scores, deciding, describe, filters_of, has_distance

__all__ = [
    "CRITERIA",
    "SELECTIONS",
    "PruneOptions",
    "Pruning",
    "asks_for",
    "check_prune",
    "describe",
    "has_distance",
    "keep_filters",
    "list_criteria",
    "prune",
    "scores",
    "spared",
]


def list_criteria() -> list[str]:
    """The criteria that `norton.prune` knows, sorted."""
    return sorted(CRITERIA)


def prune(
    net: nn.Module,
    compress_rate: str | float | Sequence[float] | Mapping[str, float | None] | None,
    criterion: Criterion = "pabs",
    *,
    options: PruneOptions = PruneOptions(),
    images: Tensor | None = None,
    labels: Tensor | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    example: Example | None = None,
    progress: bool = False,
) -> nn.Module:
    """A copy of `net` without the filters that `compress_rate` removes, decomposed or not.

    Works on any network whose forward pass can be traced, or that declares its channel axes, see `norton.wiring_of`;
    `norton.wiring_of(net).left_whole` says what cannot be pruned, and why.  example: an input or its size (channels,
    height, width), to trace a network that says none in `input_size`.

    compress_rate: the fraction removed per layer, as published (`[0.6]*6+[0.8]*7`); one number, of every layer that can
    be pruned; or patterns of layer names with a number each, of which the first that matches decides.  None for the
    criterion `index` alone.

    criterion: scores the filters; a name, `{"weighted": {"l2": 0.7, "fpgm": 0.3}}` of normalised scores, or
    `{"intersection": ["l2", "fpgm"]}`: a filter goes only if each would remove it, so fewer go than the rates ask.
    options: how scores become filters that go, a `PruneOptions`.

    images (N, C, H, W), labels (N,): for criteria that look at data; images for `options.compensate` too, without which
    nothing is compensated, with a warning.  calibration: how the images are used for that; in its sequential form, the
    means of BatchNorms follow.  seed: of the criterion `random`.  progress: show bars.

    Warns where nothing is removed although rates ask for it.  Raises InputError for unknown names, bad rates or
    filters, a layer left without filters, data that are missing, and weights that are not finite.
    """
    rates = None if compress_rate is None else read_rates(compress_rate)
    how = Allocation(rates, options)
    wiring = wiring_of(net, example)
    named = named_filters(net, wiring, criterion, options.filters, rates)
    scoring = Scoring(criterion, options, named, images, labels, seed, progress)
    if options.compensate and images is not None:
        check_images(net, images)
    rated = how.rated(net, wiring)
    small = copy.deepcopy(net)
    if example is not None:
        small.input_size = tuple(example.shape[1:] if isinstance(example, Tensor) else example)
    keep = choose(small, wiring, rated, how, scoring)
    if not keep and (spared := how.spared(net, wiring)):
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(spared.items())[:3])
        warnings.warn(f"nothing is removed, though rates ask for it: {why}", stacklevel=2)
    step = {"op": "prune", "keep": {wiring.name(axis): list(map(int, channels)) for axis, channels in keep.items()}}
    cut_(small, wiring, keep)  # as replaying the step does, without finding the wiring again
    if options.compensate and images is None:
        warn(f"compensate={options.compensate} without calibration images: not compensated")
    elif options.compensate:
        small = compensated(net, small, wiring, keep, images, calibration or Calibration(), progress=progress)
    record_step(small, step)
    return small


def check_prune(
    net: nn.Module, compress_rate: Any, criterion: Criterion = "pabs", *, options: PruneOptions = PruneOptions()
) -> None:
    """Raise InputError for what `prune` would refuse before it looks at weights or data."""
    rates = None if compress_rate is None else read_rates(compress_rate)
    wiring = wiring_of(net)
    Scoring(criterion, options)
    named_filters(net, wiring, criterion, options.filters, rates)
    Allocation(rates, options).rated(net, wiring)


def spared(
    net: nn.Module, wiring: Wiring, compress_rate: Any, *, options: PruneOptions = PruneOptions()
) -> dict[str, str]:
    """First writer of each axis that `prune` would cut at these rates, but for min_filters or round_to → why."""
    rates = None if compress_rate is None else read_rates(compress_rate)
    return Allocation(rates, options).spared(net, wiring)


def named_filters(
    net: nn.Module, wiring: Wiring, criterion: Criterion, filters: Mapping | None, rates: Any
) -> dict[str, tuple[int, ...]]:
    """Layer → the filters that the criterion `index` removes.

    Raises InputError for a layer that is unknown or cannot be pruned, filters that `parse_filters` refuses, and where
    neither rates nor filters say what goes.
    """
    if criterion != "index":
        if filters:
            raise InputError("filters= names what the criterion index removes; give criterion=index, or leave it out")
        if rates is None:
            raise InputError("compress_rate: no rates given; write e.g. [0.6]*6+[0.8]*7")
        return {}
    if not filters:
        raise InputError("criterion index removes the filters you name: give filters={LAYER: '105, 8, 9, 11-13'}")
    able = {layer: axis for axis in prunable(wiring) for layer in wiring.writers[axis]}
    modules, named = dict(net.named_modules()), {}
    for layer, text in filters.items():
        layer = str(layer)
        if layer not in able:
            why = f"cannot be pruned, {_obstacle(wiring, layer)}" if layer in modules else "is no layer of this network"
            some = ", ".join(list(able)[:4])
            raise InputError(f"filters: {layer!r} {why}; those that can are {some}{', ...' if len(able) > 4 else ''}")
        named[layer] = parse_filters(layer, text, filter_count(filters_of(modules[layer])))
        _check_units(layer, named[layer], wiring.filters(able[layer])[wiring.writers[able[layer]].index(layer)])
    return named


def _obstacle(wiring: Wiring, layer: str) -> str:
    """Why a layer's filters cannot go."""
    try:
        axis = wiring.axis_of(layer)
    except KeyError:
        return "because it has no filters"
    return "because " + wiring.frozen.get(axis, "no layer reads what it writes")


def _check_units(layer: str, named: Sequence[int], each: int) -> None:
    """Raise InputError for a part of filters that can only go together; each: how many do."""
    for channel in named:
        first = channel // each * each
        if not set(range(first, first + each)) <= set(named):
            raise InputError(
                f"filters: {layer}: filter {channel} can only go with {first}-{first + each - 1}, which are one group; "
                "name them all"
            )


@torch.no_grad()
def choose(
    net: nn.Module, wiring: Wiring, rated: Mapping[int, int], how: Allocation, scoring: Scoring
) -> dict[int, list[int]]:
    """Axis → channels kept, in their new order, for the axes that change.

    rated: axis → channels to keep; axes that are not named keep all, but for filters that go whatever the rates say.
    """
    changed = set(rated) | {wiring.axis_of(layer) for layer in scoring.named}
    bound = [axes for axes in connected(wiring.shifts) if axes & changed]
    axes = sorted(changed.union(*bound))
    rankings, wanted = [], []
    for criterion in deciding(scoring.criterion):
        rankings.append(axis_scores(net, wiring, axes, criterion, scoring))
        widths = how.widths(wiring, rated, rankings[-1])
        if empty := [axis for axis, width in widths.items() if not width]:
            raise InputError(f"{wiring.name(empty[0])}: all its filters are named, in it and in layers that are summed")
        wanted.append(kept(wiring, rankings[-1], widths, bound, how))
    if len(wanted) == 1:
        return wanted[0]
    together = {axis: np.mean([ranking[axis] for ranking in rankings], axis=0) for axis in axes}
    return united(wiring, wanted, together, bound, how)


def kept(
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
            found = fitting_keep(now, targets, own, edges, name, least=least, step=_step(wiring, axes, how))
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


def united(
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
        own, new, least = ({axis: all_of[axis] for axis in axes} for all_of in (now, targets, must))
        if own == new:
            continue
        edges = [edge for edge in wiring.shifts if edge[0] in axes]
        lowest = {axis: len(channels) for axis, channels in least.items()}
        scored = {axis: first[axis] for axis in axes}
        name = wiring.name(min(axes))
        keep |= fitting_keep(own, new, scored, edges, name, least=lowest, step=_step(wiring, axes, how), must=least)
    return keep


def _step(wiring: Wiring, axes: Iterable[int], how: Allocation) -> int:
    return lcm(*(how.step(wiring.filters(axis)) for axis in axes))


def _put_first(score: np.ndarray, channels: Sequence[int]) -> np.ndarray:
    """Scores in which the given channels stand above all others, which keep their order."""
    chosen = np.isin(np.arange(len(score)), channels)
    return score + chosen * (1 + np.ptp(score)) * 1000
