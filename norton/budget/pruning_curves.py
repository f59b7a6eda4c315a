"""Pruning as a way to spend a budget: what it costs the layers that read the pruned channels, and in which order to go.

What goes at a rate is decided by the criterion, on the network as it is.  The error is that of each reader's output,
E‖W' x'‖² / E‖W x‖² with x' the channels that go, in the unit in which ranks are measured
(`norton.budget.layer_errors`).  It adds up over readers; so does, nearly, that of several axes that a layer reads.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from norton.budget.layer_errors import Probe, relative_output_error, sampled_filters
from norton.calibration import Metric, read_images
from norton.common.errors import InputError
from norton.graph import wiring_of
from norton.graph.copies import copied
from norton.graph.declarations import declaration_of
from norton.graph.layers import WRITING_LAYERS, as_dense
from norton.graph.plan import plan_of
from norton.graph.slicing import cut_
from norton.graph.wiring import Wiring, positions
from norton.pruning import prune
from norton.pruning.alignment import connected
from norton.pruning.allocation import prunable
from norton.pruning.options import CriterionSetting, Pruning

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)

# group → which of RATES
Level = tuple[int, ...]


@dataclass
class PruningCurves:
    """The ways to prune a network.

    groups: axes that are pruned at one rate, since shortcuts bind their channels.  kept: for each rate, axis →
    channels kept, where not all are.  refit: readers are fitted anew to what they gave.  errors: reader → (groups,
    rates).
    """

    net: nn.Module
    wiring: Wiring
    groups: list[list[int]]
    kept: list[dict[int, list[int]]]
    refit: bool
    errors: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def unpruned(self) -> Level:
        return (0,) * len(self.groups)

    @property
    def most_pruned(self) -> Level:
        return (len(RATES) - 1,) * len(self.groups)

    def rates(self, level: Level) -> dict[str, float]:
        """As `norton.prune` takes them."""
        return {
            self.wiring.name(axis): RATES[rate]
            for group, rate in zip(self.groups, level, strict=True)
            for axis in group
        }

    def pruned(self, level: Level) -> nn.Module:
        keep: dict[int, list[int]] = {}
        for group, rate in zip(self.groups, level, strict=True):
            keep |= {axis: self.kept[rate][axis] for axis in group if axis in self.kept[rate]}
        small = copied(self.net)
        cut_(small, self.wiring, keep)
        return small

    def error(self, level: Level) -> float:
        return sum(self.error_by_reader(level).values())

    def error_by_reader(self, level: Level) -> dict[str, float]:
        groups = range(len(level))
        return {name: float(table[groups, level].sum()) for name, table in self.errors.items()}

    def readers(self) -> list[str]:
        """The layers that read a channel which may go."""
        able = {axis for group in self.groups for axis in group}
        return [name for name, channels in self.wiring.reads if not self.wiring.axes_in(channels).isdisjoint(able)]

    def probe(self, name: str, filters: int | None, seed: int) -> Probe:
        """What measures the errors of a reader."""
        channels = dict(self.wiring.reads)[name]
        size = len(channels)

        def probe(weight: Tensor, metric: Metric | None) -> None:
            rows = weight.flatten(1)
            rows = rows[sampled_filters(len(rows), filters, seed).to(rows.device)]
            self.errors[name] = np.zeros((len(self.groups), len(RATES)))
            for place, group in enumerate(self.groups):
                for rate, keep in enumerate(self.kept):
                    kept = positions(self.wiring, channels, {axis: keep[axis] for axis in group if axis in keep})
                    if len(kept) < size:
                        lost = torch.ones(size, dtype=torch.bool, device=rows.device)
                        lost[kept] = False
                        error = lost_rows(rows, lost.repeat_interleave(rows.shape[1] // size), metric, self.refit)
                        self.errors[name][place, rate] = relative_output_error(error, rows, metric)
            np.maximum.accumulate(self.errors[name], axis=1, out=self.errors[name])

        return probe

    def path(self, costs: Mapping[str, int]) -> list[tuple[Level, float]]:
        """Levels from unpruned to most pruned, with about the share of the costs that each leaves; best value first.

        costs: of each layer.  They are taken to shrink with the channels that a layer reads and with its filters.
        """
        cost = _CostModel(self, costs)
        level, found = list(self.unpruned), [(self.unpruned, 1.0)]
        table = sum(self.errors.values(), np.zeros(()))
        while steps := [group for group, rate in enumerate(level) if rate + 1 < len(RATES)]:
            now, prices = cost(level), {}
            for group in steps:
                rate = level[group]
                level[group] += 1
                saved, added = now - cost(level), table[group, rate + 1] - table[group, rate]
                level[group] = rate
                prices[group] = added / saved if saved > 0 else 0.0
            level[min(prices, key=prices.__getitem__)] += 1
            found.append((tuple(level), cost(level) / cost(self.unpruned)))
        return found

    def first_within(self, path: Sequence[tuple[Level, float]], within: Callable[[nn.Module], bool]) -> int | None:
        """The first place on a path at which the pruned network is within a budget; None where it is nowhere."""
        place = bisect_left(range(len(path)), True, key=lambda step: within(self.pruned(path[step][0])))
        return place if place < len(path) else None


class _CostModel:
    """(level) → about what the network costs."""

    def __init__(self, curves: PruningCurves, costs: Mapping[str, int]):
        wiring = curves.wiring
        self.axes = [axis for group in curves.groups for axis in group]
        place = {axis: i for i, axis in enumerate(self.axes)}
        self.group: np.ndarray = np.repeat(np.arange(len(curves.groups)), [len(group) for group in curves.groups])
        self.left = np.array(
            [
                [len(keep[axis]) / wiring.width(axis) if axis in keep else 1.0 for keep in curves.kept]
                for axis in self.axes
            ]
        )
        names = list(costs)
        self.cost = np.array([costs[name] for name in names], float)
        # What a layer reads, or passes on, is a mean over axes; the last one stands for all that cannot go.
        self.reads = np.zeros((len(names), len(self.axes) + 1))
        self.reads[:, -1] = 1
        self.writes = np.full(len(names), len(self.axes))
        for name, channels in [*wiring.reads, *wiring.passes]:
            if name in costs:
                row = self.reads[names.index(name)]
                row[-1] = 0
                for axis, count in zip(*np.unique(wiring.axis_at(channels), return_counts=True), strict=True):
                    row[place.get(axis, -1)] += count / len(channels)
        for axis, writers in wiring.writers.items():
            for name in writers:
                if name in costs and axis in place:
                    self.writes[names.index(name)] = place[axis]

    def __call__(self, level: Sequence[int]) -> float:
        left: np.ndarray = np.append(self.left[np.arange(len(self.axes)), np.asarray(level)[self.group]], 1.0)
        return float((self.cost * (self.reads @ left) * left[self.writes]).sum())


def check_criterion(criterion: CriterionSetting) -> None:
    """Raise InputError for a criterion whose widths do not follow from rates."""
    if criterion == "index" or (isinstance(criterion, Mapping) and "intersection" in criterion):
        raise InputError(
            f"a joint budget needs a criterion by which as many filters go as a rate says, which {criterion!r} is not"
        )


def pruning_curves_of(net: nn.Module, pruning: Pruning) -> PruningCurves:
    """How a network can be pruned by the arguments of `norton.prune`.

    Raises InputError where nothing can be pruned, and for a criterion whose widths do not follow from rates.
    """
    check_criterion(pruning.criterion)
    refit = pruning.options.compensate is not None
    images, labels = read_images(net, pruning.images, pruning.labels)  # once, for all rates
    pruning = replace(pruning, options=replace(pruning.options, compensate=None), images=images, labels=labels)
    wiring = wiring_of(net)
    able = [axis for axis in prunable(wiring) if all(_measurable(net, name) for name in _readers(wiring, axis))]
    bound = [sorted(axes) for axes in connected(wiring.shifts)]
    groups = [axes for axes in bound if set(axes) <= set(able)]
    groups += [[axis] for axis in able if not any(axis in axes for axes in bound)]
    if not groups:
        raise InputError("a joint budget has nothing to prune here; norton.wiring_of(net).left_whole says why")
    names = [wiring.name(axis) for group in groups for axis in group]
    kept: list[dict[int, list[int]]] = [{}]
    for rate in RATES[1:]:
        step = plan_of(prune(net, dict.fromkeys(names, rate), **pruning.arguments()))[-1]
        kept.append({wiring.axis_of(name): kept for name, kept in step["keep"].items()})
    return PruningCurves(net, wiring, sorted(groups), kept, refit)


def _readers(wiring: Wiring, axis: int) -> list[str]:
    return [name for name, channels in wiring.reads if axis in wiring.axes_in(channels)]


def _measurable(net: nn.Module, name: str) -> bool:
    layer = as_dense(net.get_submodule(name))
    return isinstance(layer, WRITING_LAYERS) and declaration_of(layer) is None and getattr(layer, "groups", 1) == 1


def lost_rows(rows: Tensor, lost: Tensor, metric: Metric | None, refit: bool) -> Tensor:
    """(n, D): what flattened filters lose when the inputs `lost` (D,) go; refit: when least squares make up for it."""
    error = rows * lost
    if refit and metric is not None and len(metric.blocks) == 1 and not lost.all():
        [whole] = metric.blocks
        kept = ~lost
        pull = (error @ whole)[:, kept].double()
        error[:, kept] = -Metric([whole[kept][:, kept].double()]).solve(pull).to(error)
    return error
