"""The multiple-choice knapsack: one option per layer, the least summed error whose summed cost is within a budget.

Layer after layer, the states kept are the pairs (cost, error) that no other beats in both.  Of these only such stay as
can still come below the best solution known: the least error that the layers to come can add is bounded by letting
them mix options, which is a walk along the lower convex hulls of their options, steepest descent first (the linear
relaxation; Sinha & Zoltners, The multiple-choice knapsack problem, Operations Research 27(3), 1979).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

STATES = 4096  # kept after a layer at most; with fewer, the solution is the best there is
_CHANGES = 1000
_ROUNDING = 1e-12  # relative, of errors summed in another order


class _Options(NamedTuple):
    """A layer's options that no other beats in both: costs rising, errors falling; index: among all.

    hull: the places of those on the lower convex hull.
    """

    cost: NDArray
    error: NDArray
    index: NDArray
    hull: NDArray


def cheapest(costs: Sequence[ArrayLike]) -> int:
    """The least summed cost."""
    return sum(int(np.min(cost)) for cost in costs)


def choose(
    costs: Sequence[ArrayLike], errors: Sequence[ArrayLike], budget: int, starts: Sequence[Sequence[int]] = ()
) -> list[int]:
    """For each layer which of its options, such that the errors' sum is least and the costs' sum within the budget.

    costs, errors: per layer, of each option; costs are whole numbers.  starts: solutions within the budget, none of
    which will be better than what is returned.  Where over `STATES` states would be kept after a layer, those are that
    have the least error in as many equal ranges of cost: the solution is then no worse than the best of a budget that
    is smaller by a fraction of (layers / STATES).

    Raises ValueError where no solution is within the budget.
    """
    options = [_undominated(cost, error) for cost, error in zip(costs, errors, strict=True)]
    if cheapest(costs) > budget:
        raise ValueError(f"the cheapest options cost {cheapest(costs)}, more than {budget}")
    best = min([_greedy(options, budget), *map(list, starts)], key=lambda one: _total(errors, one))
    order = sorted(range(len(options)), key=lambda which: options[which].cost[0] - options[which].cost[-1])
    enough = _total(errors, best)
    enough += _ROUNDING * max(1.0, enough)
    cost: NDArray = np.zeros(1, np.int64)
    error: NDArray = np.zeros(1)
    steps = []
    for place, which in enumerate(order):
        own, count = options[which], len(options[which].cost)
        cost, error = (cost[:, None] + own.cost).ravel(), (error[:, None] + own.error).ravel()
        least_to_come = _relaxed([options[later] for later in order[place + 1 :]])
        able = np.flatnonzero(error + least_to_come(budget - cost) <= enough)
        able = able[_frontier(cost[able], error[able])]
        cost, error = cost[able], error[able]
        steps.append((which, able // count, own.index[able % count]))
    if not len(cost) or error[-1] >= _total(errors, best):
        return best
    found, state = [0] * len(options), len(cost) - 1  # the last one has the least error
    for which, parents, chosen in reversed(steps):
        found[which], state = int(chosen[state]), parents[state]
    return found


def fill(
    costs: Sequence[NDArray], errors: Sequence[NDArray], chosen: Sequence[int], least: int, budget: int
) -> list[int] | None:
    """The least error with a cost from `least` to the budget that other options of at most two layers lead to.

    None where none does.  Of many options only the `_CHANGES` are looked at that change the error least.
    """
    changes = [(-1, 0, 0, 0.0)]  # the first one changes nothing
    changes += [
        (which, place, int(cost[place] - cost[now]), float(error[place] - error[now]))
        for which, (cost, error, now) in enumerate(zip(costs, errors, chosen, strict=True))
        for place in range(len(cost))
        if place != now
    ]
    changes = sorted(changes, key=lambda one: abs(one[3]))[:_CHANGES]
    layer, option, rise, change = map(np.array, zip(*changes, strict=True))
    before = sum(int(cost[place]) for cost, place in zip(costs, chosen, strict=True))
    after = before + rise[:, None] + rise
    able = (least <= after) & (after <= budget) & ((layer[:, None] != layer) | (layer < 0))
    if not able.any():
        return None
    pair = np.unravel_index(np.where(able, change[:, None] + change, np.inf).argmin(), able.shape)
    found = list(chosen)
    for which in pair:
        if layer[which] >= 0:
            found[layer[which]] = int(option[which])
    return found


def _total(errors: Sequence[ArrayLike], chosen: Sequence[int]) -> float:
    return float(sum(error[which] for error, which in zip(errors, chosen, strict=True)))


def _undominated(cost: ArrayLike, error: ArrayLike) -> _Options:
    cost, error = np.asarray(cost, np.int64), np.asarray(error, float)
    index = np.lexsort((error, cost))
    index = index[_falling(error[index])]
    cost, error = cost[index], error[index]
    hull: list[int] = []
    for new in range(len(cost)):
        while len(hull) > 1 and _above(cost, error, hull[-2], hull[-1], new):
            hull.pop()
        hull.append(new)
    return _Options(cost, error, index, np.array(hull))


def _above(cost: NDArray, error: NDArray, left: int, middle: int, right: int) -> bool:
    """Whether the middle one of three options lies on or above the line between the others."""
    rise, fall = cost[middle] - cost[left], error[left] - error[middle]
    return fall * (cost[right] - cost[left]) <= (error[left] - error[right]) * rise


def _falling(error: NDArray) -> NDArray:
    """Whether each is below all before it."""
    before = np.minimum.accumulate(np.concatenate([[np.inf], error]))[:-1]
    return error < before


def _frontier(cost: NDArray, error: NDArray) -> NDArray:
    """The places of states that none beats in both, costs rising, thinned to `STATES`."""
    order = np.lexsort((error, cost))
    order = order[_falling(error[order])]
    if len(order) <= STATES:
        return order
    cost = cost[order].astype(float)
    bins = ((cost - cost[0]) * (STATES / (cost[-1] - cost[0]))).astype(np.int64).clip(max=STATES - 1)
    return order[np.append(bins[1:] != bins[:-1], True)]  # the last of a bin has its least error


def _segments(options: Sequence[_Options]) -> list[tuple[float, int, int, int, float]]:
    """(slope, which, place, cost, error) of each step along the options' hulls, steepest descent first."""
    found = []
    for which, own in enumerate(options):
        for left, right in zip(own.hull, own.hull[1:], strict=False):
            rise, change = own.cost[right] - own.cost[left], own.error[right] - own.error[left]
            found.append((change / rise, which, int(right), int(rise), change))
    return sorted(found)


def _relaxed(options: Sequence[_Options]) -> Callable[[NDArray], NDArray]:
    """(budgets) → the least error of options that may be mixed; infinite where a budget is below the least cost."""
    steps = _segments(options)
    cost = np.cumsum([sum(own.cost[0] for own in options), *(rise for *_, rise, _ in steps)]).astype(float)
    error = np.cumsum([sum(own.error[0] for own in options), *(change for *_, change in steps)])
    return lambda budget: np.where(budget < cost[0], np.inf, np.interp(budget, cost, error))


def _greedy(options: Sequence[_Options], budget: int) -> list[int]:
    """A good solution: from the cheapest on, each step along the hulls that fits, steepest descent first."""
    places, closed = [0] * len(options), set()
    room = budget - sum(int(own.cost[0]) for own in options)
    for _, which, place, rise, _ in _segments(options):
        if which not in closed and rise <= room:
            places[which], room = place, room - rise
        else:
            closed.add(which)
    return [int(own.index[place]) for own, place in zip(options, places, strict=True)]
