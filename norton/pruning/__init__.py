"""Pruning: choose the filters that can go, and remove them from the network for good."""

import copy
import numbers
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from rich.progress import track
from torch import nn

from norton.decomposition.methods import is_decomposed
from norton.errors import InputError
from norton.plan import record_step
from norton.pruning.alignment import aligned_keep, connected
from norton.pruning.criteria import CRITERIA, is_distance, keep_filters, scores
from norton.pruning.published import published_scores
from norton.pruning.surgery import cut_
from norton.rates import parse_rates, pruned_width
from norton.registry import import_submodules
from norton.tracing import Example, wiring_of
from norton.wiring import Wiring

import_submodules(__name__)

__all__ = ["CRITERIA", "SELECTIONS", "keep_filters", "prune", "scores"]

SELECTIONS = {"exact": scores, "published": published_scores}  # how distances between filters become scores


def prune(
    net: nn.Module,
    compress_rate: str | float | Sequence[float],
    *,
    criterion: str = "pabs",
    dense_criterion: str = "l2",
    selection: str = "exact",
    example: Example | None = None,
    progress: bool = False,
) -> nn.Module:
    """A copy of `net` without the filters that `compress_rate` removes, decomposed or not.

    Works on any network whose forward pass can be traced, or that declares its channel axes, see `norton.wiring_of`;
    `norton.wiring_of(net).left_whole` says what cannot be pruned, and why.

    compress_rate: one number, the fraction removed of every axis that can be pruned; or, for the networks of
    `norton.build` that declare them, the fraction per layer, as published (`[0.6]*6+[0.8]*7`).  example: an input or
    its size (channels, height, width), to trace a network that says none in `input_size`.
    criterion: scores the filters; a distance between factors scores decomposed layers only, dense ones (1×1
    convolutions above all) then go by `dense_criterion`.  Layers that write to one residual stream keep the same
    channels, by their mean rank.
    selection: `published` repeats two mistakes of the paper's public code, see `norton.pruning.published`.

    Raises InputError for unknown criteria or selections, bad rates, a layer left without filters, and weights that are
    not finite.
    """
    for name in (criterion, dense_criterion):
        CRITERIA[name]
    if selection not in SELECTIONS:
        raise InputError(f"unknown selection {selection!r}; choose one of {', '.join(SELECTIONS)}")
    wiring = wiring_of(net, example)
    widths = target_widths(net, wiring, compress_rate)
    small = copy.deepcopy(net)
    if example is not None:
        small.input_size = tuple(example.shape[1:] if isinstance(example, torch.Tensor) else example)
    keep = choose(small, wiring, widths, criterion, dense_criterion, selection, progress)
    step = {"op": "prune", "keep": {wiring.name(axis): list(map(int, channels)) for axis, channels in keep.items()}}
    cut_(small, wiring, keep)  # as replaying the step does, without finding the wiring again
    record_step(small, step)
    return small


def target_widths(net: nn.Module, wiring: Wiring, compress_rate: str | float | Sequence[float]) -> dict[int, int]:
    """Axis → units to keep.  Raises InputError for rates that do not fit the network."""
    if isinstance(compress_rate, numbers.Real) and not isinstance(compress_rate, bool):
        return uniform_widths(wiring, *parse_rates(float(compress_rate)))
    if not hasattr(net, "target_widths"):
        raise InputError(
            f"compress_rate: {type(net).__name__} has no published rates, got {compress_rate!r}; give one number, the "
            "fraction removed of every axis that its wiring lets prune"
        )
    targets = net.target_widths(net.check_rates(compress_rate))
    return {wiring.axis_of(layer): width for layer, width in targets.items()}


def uniform_widths(wiring: Wiring, rate: float) -> dict[int, int]:
    """Axis → units to keep, the same fraction of every axis that can be pruned.  Raises InputError if there is none."""
    frozen = wiring.frozen
    free = [axis for axis in wiring.writers if axis not in frozen]
    if not free:
        reasons = "; ".join(f"{layer}: {reason}" for layer, reason in list(wiring.left_whole.items())[:3])
        raise InputError(f"none of its {len(wiring.writers)} channel axes can be pruned: {reasons}")
    return {axis: max(1, pruned_width(wiring.width(axis), rate)) for axis in free}


@torch.no_grad()
def choose(
    net: nn.Module,
    wiring: Wiring,
    widths: Mapping[int, int],
    criterion: str,
    dense_criterion: str = "l2",
    selection: str = "exact",
    progress: bool = False,
) -> dict[int, list[int]]:
    """Axis → channels kept, in their new order, for the axes that change.

    widths: axis → channels to keep; axes that are not named keep all.
    """
    changed = {axis: width for axis, width in widths.items() if width != wiring.width(axis)}
    bound = [axes for axes in connected(wiring.shifts) if axes & changed.keys()]
    axes = sorted(set(changed).union(*bound))
    ranking = {
        axis: axis_scores(net, wiring.writers[axis], criterion, dense_criterion, selection, width=wiring.width(axis))
        for axis in track(axes, "score filters", disable=not progress, transient=True)
    }
    keep = {
        axis: sorted(np.argsort(-ranking[axis], kind="stable")[:width].tolist())
        for axis, width in changed.items()
        if not any(axis in axes for axes in bound)
    }
    for axes in bound:
        now = {axis: wiring.width(axis) for axis in axes}
        edges = [edge for edge in wiring.shifts if edge[0] in axes]
        keep |= aligned_keep(now, {a: widths.get(a, now[a]) for a in now}, ranking, edges, wiring.name(min(axes)))
    return keep


def axis_scores(
    net: nn.Module,
    writers: Sequence[str],
    criterion: str,
    dense_criterion: str,
    selection: str = "exact",
    *,
    width: int,
) -> np.ndarray:
    """(width,) mean over the layers that write an axis of each filter's rank in its layer, in [0, 1], larger = keep.

    Ranks, because the layers' scores differ in scale.  A unit of several filters has their mean score.
    """
    ranks = []
    for name in writers:
        score = _layer_scores(name, net.get_submodule(name), criterion, dense_criterion, selection)
        score = score.view(width, -1).mean(1).cpu().numpy()
        order = np.argsort(score, kind="stable")
        rank = np.empty(len(score))
        rank[order] = np.linspace(0, 1, len(score))
        ranks.append(rank)
    return np.mean(ranks, axis=0)


def _layer_scores(name: str, layer: nn.Module, criterion: str, dense_criterion: str, selection: str) -> torch.Tensor:
    if hasattr(layer, "factors"):
        filters = layer.factors()
        channels, rank = filters.head.shape[:2]
        if is_distance(criterion) and rank >= channels and not CRITERIA[criterion](filters).any():
            # A stem of three channels at rank 7: all subspaces are the whole space, so angles cannot tell them apart.
            criterion = dense_criterion
    else:
        filters = layer.composed_weight() if is_decomposed(layer) else layer.weight
        criterion = dense_criterion if is_distance(criterion) else criterion
    try:
        return SELECTIONS[selection if is_distance(criterion) else "exact"](filters, criterion)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
