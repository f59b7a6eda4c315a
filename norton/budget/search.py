"""The choice of ranks, and of how far to prune, with the least error within a budget."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from norton.budget.choice import Choice, Uniform
from norton.budget.costs import QUANTITIES, Costs
from norton.budget.knapsack import cheapest, choose, fill
from norton.budget.pruning_curves import Level, PruningCurves
from norton.budget.rank_curves import RankCurve
from norton.common.errors import InputError, warn
from norton.decomposition.ranks import Rank

EXACT = 0.01  # of the budget; where more is left, that is said
WORTH = 1.05  # times the least error may be paid for coming so near to the budget
# Pruning is to leave share**s of the network, ranks the rest; then splits nearer to the best are tried.
_SPLITS = np.linspace(0, 1.1, 9)
_REFINED = 5


@dataclass(frozen=True)
class Solution:
    """A solution: for each layer the place of its option (0: dense), how far the network is pruned, cost and errors."""

    places: list[int]
    level: Level | None
    cost: int
    error: float


class RankProblem:
    """The options of all layers, with what they lose."""

    def __init__(self, costs: Costs, curves: Mapping[str, RankCurve], budget: int):
        self.costs, self.curves, self.budget = costs, curves, budget
        self.ranks = {name: curve.ranks for name, curve in curves.items()}
        self.errors = [curve.errors for curve in curves.values()]

    def uniform(self, rank: int) -> list[int]:
        """The places of a uniform rank; dense where the rank costs no less."""
        own = self.costs.uniform_ranks(rank)
        return [ranks.index(own[name]) + 1 if own[name] in ranks else 0 for name, ranks in self.ranks.items()]

    def error(self, places: Sequence[int]) -> float:
        return float(sum(error[place] for error, place in zip(self.errors, places, strict=True)))

    def chosen(self, places: Sequence[int]) -> dict[str, Rank | None]:
        return {
            name: ranks[place - 1] if place else None
            for (name, ranks), place in zip(self.ranks.items(), places, strict=True)
        }

    def solve(
        self, net: nn.Module, starts: Sequence[Sequence[int]] = (), level: Level | None = None
    ) -> Solution | None:
        """The least error within the budget, of the network or one pruned from it; None where there is none."""
        rest, by_layer = self.costs.by_rank(net, self.ranks)
        costs = list(by_layer.values())
        if rest + cheapest(costs) > self.budget:
            return None
        places = choose(costs, self.errors, self.budget - rest, starts)
        found = self._found(places, rest, costs, level)
        if not self.uses_all(found):
            nearer = fill(costs, self.errors, places, math.ceil((1 - EXACT) * self.budget) - rest, self.budget - rest)
            most = min([WORTH * found.error, *map(self.error, starts)])
            if nearer is not None and self.error(nearer) <= most:
                return self._found(nearer, rest, costs, level)
        return found

    def _found(self, places: list[int], rest: int, costs: Sequence[np.ndarray], level: Level | None) -> Solution:
        cost = rest + sum(int(own[place]) for own, place in zip(costs, places, strict=True))
        return Solution(places, level, cost, self.error(places))

    def uses_all(self, found: Solution) -> bool:
        return found.cost >= (1 - EXACT) * self.budget

    def choice(self, found: Solution, share: float, uniform: int | None, curves: PruningCurves | None) -> Choice:
        costs, level = self.costs, found.level
        net, lost, rates = costs.net, {}, {}
        if curves is not None:
            rates = curves.rates(level or curves.unpruned)
            if level is not None:
                net, lost = curves.pruned(level), curves.error_by_reader(level)
        ranks = self.chosen(found.places)
        cost, after = costs.count(costs.shaped(net, ranks))
        if cost > self.budget:
            raise InputError(
                f"budget: the costs of {type(costs.net).__name__}'s layers do not add up; name ranks instead"
            )
        if not self.uses_all(found):
            warn(
                f"{100 * cost / costs.total:.2f}% of the {QUANTITIES[costs.what]} are kept of {100 * share:g}% asked "
                "for: the steps between ranks are too coarse here for a choice that uses more and is not worse"
            )
        errors = {name: float(own[place]) for name, own, place in zip(ranks, self.errors, found.places, strict=True)}
        for name, error in lost.items():
            errors[name] = errors.get(name, 0.0) + error
        named = {alias: rank for name, rank in ranks.items() for alias in costs.layers[name]}
        by_layer = {
            name: (before, after[name]) for name, before in costs.by_layer.items() if name in {*ranks, *rates, *errors}
        }
        other = None
        if uniform is not None:
            whole = costs.count(costs.shaped(costs.net, costs.uniform_ranks(uniform)))[0]
            other = Uniform(uniform, self.error(self.uniform(uniform)), whole / costs.total)
        return Choice(named, rates, costs.what, share, cost / costs.total, errors, by_layer, other)


def best_split(problem: RankProblem, ranked: Solution | None, curves: PruningCurves, share: float) -> Solution:
    """The best solution that prunes along `PruningCurves.path` and chooses ranks for what is left of the budget.

    ranked: by ranks alone, which is taken where none is better; None where ranks alone cannot meet the budget.
    """
    path = curves.path(problem.costs.by_layer)
    left = np.array([part for _, part in path])
    tried: dict[int, Solution | None] = {0: ranked}

    def attempt(places: Iterable[int]) -> tuple[int, Solution]:
        for place in places:
            if place not in tried:
                level = path[place][0]
                found = problem.solve(curves.pruned(level), level=level)
                tried[place] = found and replace(found, error=found.error + curves.error(level))
        able = {place: found for place, found in tried.items() if found}
        return min(able.items(), key=lambda one: (one[0] > 0 and not problem.uses_all(one[1]), one[1].error, one[0]))

    first = [int(np.argmax(left <= max(share**part, left[-1]))) for part in _SPLITS]
    alone = curves.first_within(path, lambda net: problem.costs.count(net)[0] <= problem.budget)  # no ranks at all
    best, _ = attempt([*first, len(path) - 1, *([] if alone is None else [alone])])
    known = sorted(tried)
    near = known.index(best)
    low, high = known[max(0, near - 1)], known[min(len(known) - 1, near + 1)]
    return attempt(np.linspace(low, high, _REFINED + 2).round().astype(int).tolist())[1]
