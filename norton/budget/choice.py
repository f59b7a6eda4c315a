"""Ranks from a budget: a share of MACs or parameters to keep, spent where it lowers the errors of layers' outputs most.

The error of a layer is E‖(W - Ŵ) x‖² / E‖W x‖² over what it reads in the network as it is, of what varies alone where a
bias or BatchNorm takes up any constant.  It is measured for each layer by itself, at each of its ranks; the choice is
the one with the least sum over layers that the budget allows (`norton.budget.knapsack`).

With `joint`, filters are pruned too.  What a layer no longer reads adds to its error, in the same unit, so that both
ways to save compete (`norton.budget.pruning_curves`).
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from norton.budget.knapsack import cheapest, choose, fill
from norton.budget.pruning_curves import RATES, Level, Look, Thinning, check_criterion, drawn, relative_error, thinnings
from norton.calibration.metric import Metric
from norton.calibration.outputs import Calibration, check_images, fit_to_outputs
from norton.common.errors import InputError, warn
from norton.decomposition import DECOMPOSITIONS, OBJECTIVES, check_options
from norton.decomposition.cp import CPConv2d
from norton.decomposition.layers import FilterWise
from norton.decomposition.ranks import Rank, layer_rules, ranks_of, resolve
from norton.graph.layers import composed
from norton.graph.plan import OPERATIONS
from norton.graph.slicing import cut_outputs_
from norton.graph.tracing import stated_size
from norton.measure.counting import complexity

MOST_RANKS = 16  # of a layer that are tried, where it has more
EXACT = 0.01  # of the budget; where more is left, that is said
WORTH = 1.05  # times the least error may be paid for coming so near to the budget
KINDS = {"macs": "MACs", "params": "parameters"}
# Pruning is to leave share**s of the network, ranks the rest; then splits nearer to the best are tried.
_SPLITS = np.linspace(0, 1.1, 9)
_REFINED = 5


@dataclass(frozen=True)
class Uniform:
    """The highest rank that all layers can have within a budget, each at most its full one.

    error: as of a `Choice`; layers count as left dense where the rank costs no less.
    """

    rank: int
    error: float
    share: float


@dataclass(frozen=True)
class Choice:
    """What a budget buys, for `norton.decompose(net, choice.ranks)` and then `norton.prune(net, choice.rates)`.

    ranks: layer → rank, None where it stays dense; jointly all may, and then only `prune` is to follow.  rates: layer →
    fraction of its filters that goes; empty unless joint.  what: macs or params.  asked, share: of them, to be kept and
    kept.  errors: layer → its relative output error, measured as `choose_ranks` says.  costs: layer → (before, after).
    uniform: None where even rank 1 in all layers is above the budget.
    """

    ranks: dict[str, Rank | None]
    rates: dict[str, float]
    what: str
    asked: float
    share: float
    errors: dict[str, float]
    costs: dict[str, tuple[int, int]]
    uniform: Uniform | None

    @property
    def error(self) -> float:
        """The sum of the layers' errors."""
        return sum(self.errors.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, from which `choice_of` makes the choice again."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """The numbers that a checkpoint keeps; the ranks are in its plan."""
        return {self.what: self.asked, "kept": self.share, "output_error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer that is decomposed, pruned, or reads what is pruned."""
        rows = []
        for layer, (before, after) in self.costs.items():
            rank = self.ranks.get(layer)
            row = {"layer": layer, "rank": "dense" if rank is None else str(rank).strip("[]")}
            if self.rates:
                row["filters removed %"] = f"{100 * self.rates.get(layer, 0.0):.0f}"
            cost = {f"{KINDS[self.what]} before": f"{before:,}", f"{KINDS[self.what]} after": f"{after:,}"}
            rows.append({**row, "output error": f"{self.errors.get(layer, 0.0):.4f}", **cost})
        return rows

    def sentence(self) -> str:
        """The choice beside the uniform one."""
        text = f"{100 * self.share:.2f}% of the {KINDS[self.what]}, {100 * self.asked:g}% asked for; "
        text += f"output errors add up to {self.error:.4f}"
        if self.uniform is None:
            return f"{text}; no uniform rank is within the budget"
        other = self.uniform
        return f"{text}, at uniform rank {other.rank} to {other.error:.4f} with {100 * other.share:.2f}%"


def choice_of(data: Mapping[str, Any]) -> Choice:
    """The choice that `Choice.as_dict` wrote."""
    uniform = data["uniform"] and Uniform(**data["uniform"])
    costs = {layer: tuple(cost) for layer, cost in data["costs"].items()}
    return Choice(**{**data, "uniform": uniform, "costs": costs})


@torch.no_grad()
def choose_ranks(
    net: nn.Module,
    images: Tensor | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    method: str = "cp",
    skip: Iterable[str] | None = None,
    joint: bool = False,
    pruning: Mapping[str, Any] | None = None,
    objective: str = "outputs",
    calibration: Calibration | None = None,
    filters: int | None = 64,
    seed: int = 0,
    progress: bool = False,
    **options,
) -> Choice:
    """Choose the ranks of a network's layers, and with `joint` its pruning rates, for a budget.

    macs, params: the share to keep of what `norton.complexity` counts for `net`; one of the two, between 0 and 1.
    images: (N, C, H, W), unlabelled; where None, errors of weights stand for those of outputs, with a warning.  They
    also tell the size of images, where the network states none.
    method, skip, objective, calibration, seed, options: of the `norton.decompose` that is to follow.  With the
    objective `outputs`, errors are those after at most one sweep, of `cp` from one start.

    filters: so many of a layer, drawn by the seed, are looked at where the method decomposes filter by filter; None:
    all.  Of a layer's ranks those are tried that cost less than the layer, or 16 of them evenly spread.  That takes the
    time of gathering covariances once, and of fitting so many filters of each layer at each rank.

    joint: filters go as by `norton.prune(net, rates, **pruning)`, at rates that are multiples of 0.1.  Several ways to
    share the budget between pruning and ranks are tried, ranks alone and pruning alone too, and the best is taken.

    The errors never add up to more than at the highest uniform rank within the budget.  Where the least sum leaves over
    1% of the budget, one that does not is taken if it is at most 5% larger, and where there is none a warning says so.
    Raises InputError for a share outside (0, 1), none or two of them, one below the least possible, and what
    `norton.decompose` and `norton.prune` refuse.
    """
    what, share = asked(macs, params)
    calibration = calibration or Calibration()
    if objective not in OBJECTIVES:
        raise InputError(f"objective is {objective!r}; choose one of {', '.join(OBJECTIVES)}")
    if filters is not None and (isinstance(filters, bool) or not isinstance(filters, int) or filters < 1):
        raise InputError(f"filters is {filters!r}; it must be a whole number of at least 1, or None for all")
    check_options(DECOMPOSITIONS[method].from_conv, options, method)
    if images is not None:
        check_images(net, images)
    bill = Bill(net, what, method, skip, stated_size(net) or (None if images is None else images.shape[1:]))
    thinning = thinnings(net, pruning or {}) if joint else None
    budget = check_least(bill, share, thinning)

    uniform = highest_uniform(bill, budget)
    candidates = bill.cheaper({name: ranks_to_try(net, name, method, uniform) for name in bill.layers})
    sweeps = min(1, calibration.sweeps) if objective == "outputs" else None
    if sweeps is not None and method == "cp":
        options["starts"] = 1  # more take twice the time altogether, and the fit to outputs makes up for most of it
    curves = {
        name: Curve(net.get_submodule(name), name, ranks, method, sweeps, filters, options | {"seed": seed})
        for name, ranks in candidates.items()
    }
    looks: dict[str, list[Look]] = {name: [curve.look] for name, curve in curves.items() if curve.ranks}
    for name in thinning.readers() if thinning else []:
        looks.setdefault(name, []).append(thinning.look(name, filters, seed))
    measure(net, looks, images, calibration, progress)
    problem = Problem(bill, curves, budget)
    found = problem.solve(net, [] if uniform is None else [problem.uniform(uniform)])
    if thinning:
        found = best_split(problem, found, thinning, share)
    return problem.choice(found, share, uniform, thinning)


def check_budget(
    net: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    method: str = "cp",
    skip: Iterable[str] | None = None,
    joint: bool = False,
    pruning: Mapping[str, Any] | None = None,
) -> None:
    """Raise InputError for what `choose_ranks` would refuse before it looks at weights or images."""
    what, share = asked(macs, params)
    bill, pruning = Bill(net, what, method, skip, stated_size(net)), dict(pruning or {})
    if joint:
        check_criterion(pruning)
    check_least(bill, share, thinnings(net, pruning | {"criterion": "l2"}) if joint else None)


def asked(macs: Any, params: Any) -> tuple[str, float]:
    """What is to be kept a share of, and the share.  Raises InputError where that is not clear or not possible."""
    given = {what: share for what, share in (("macs", macs), ("params", params)) if share is not None}
    if len(given) != 1:
        said = "both macs and params are" if given else "neither macs nor params is"
        raise InputError(f"budget: {said} given; give the share to keep of one of them, e.g. macs=0.4")
    [(what, share)] = given.items()
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < 1:
        raise InputError(f"budget: {what} is {share!r}; it is the share to keep, above 0 and below 1, e.g. {what}=0.4")
    return what, share


# What networks cost


class Bill:
    """What a network costs, and with its layers at other ranks.

    size: (C, H, W) of its images; None: as the network states.  layers: those that the method takes, by their first
    name → all their names.  total, by_layer: of the network.
    """

    def __init__(self, net: nn.Module, what: str, method: str, skip: Iterable[str] | None, size: Sequence[int] | None):
        self.net, self.what, self.method, self.size = net, what, method, size
        by_module: dict[nn.Module, list[str]] = {}
        for name in layer_rules(net, 1, skip, method):
            by_module.setdefault(net.get_submodule(name), []).append(name)
        self.layers = {names[0]: names for names in by_module.values()}
        if "" in self.layers:
            raise InputError("a budget is for networks of several layers; this one is a single one, so give its rank")
        self.total, self.by_layer = self.cost(net)
        self._inputs = _input_shapes(net, self.layers, size or net.input_size)
        self._known: dict[tuple, int] = {}

    def cost(self, net: nn.Module) -> tuple[int, dict[str, int]]:
        found = complexity(net, self.size)
        return getattr(found, self.what), {name: getattr(cost, self.what) for name, cost in found.by_layer.items()}

    def shaped(self, net: nn.Module, ranks: Mapping[str, Rank | None]) -> nn.Module:
        """A network with the shapes of its layers at these ranks; values undefined."""
        step = {alias: rank for name, rank in ranks.items() if rank is not None for alias in self.layers[name]}
        small = copy.deepcopy(net)
        OPERATIONS["decompose"](small, {"method": self.method, "ranks": step})
        return small

    def uniform(self, rank: int) -> dict[str, Rank]:
        return {name: resolve(name, self.net.get_submodule(name), rank, self.method) for name in self.layers}

    def of(self, net: nn.Module, ranks: Mapping[str, Sequence[Rank]]) -> tuple[int, dict[str, np.ndarray]]:
        """What all else costs; and layer → what it costs left dense, then at each of its ranks.

        net: the network, or one pruned from it.
        """
        total, dense = self.cost(net)
        found = {}
        for name, tried in ranks.items():
            if len(self.layers[name]) == 1 and len(self._inputs[name]) == 1:
                changed = [self._alone(net.get_submodule(name), name, rank) for rank in tried]
            else:  # how often a layer counts that is shared, or called again, the total alone tells
                totals = (self.cost(self.shaped(net, {name: rank}))[0] for rank in tried)
                changed = [dense[name] + cost - total for cost in totals]
            found[name] = np.array([dense[name], *changed])
        return total - sum(int(costs[0]) for costs in found.values()), found

    def _alone(self, layer: nn.Module, name: str, rank: Rank) -> int:
        [shape] = self._inputs[name]
        channels = layer.weight.shape[1]
        shape = (*shape[:-1], channels) if isinstance(layer, nn.Linear) else (channels, *shape[1:])
        key = str(layer), shape, str(rank)  # layers of the same geometry cost the same
        if key not in self._known:
            cost = complexity(DECOMPOSITIONS[self.method].shaped_like(layer, rank), shape)
            self._known[key] = getattr(cost, self.what)
        return self._known[key]

    def cheaper(self, ranks: Mapping[str, Sequence[Rank]]) -> dict[str, list[Rank]]:
        """Those of the ranks at which a layer costs less than left dense."""
        _, costs = self.of(self.net, ranks)
        return {
            name: [rank for rank, cost in zip(tried, costs[name][1:], strict=True) if cost < costs[name][0]]
            for name, tried in ranks.items()
        }


def _input_shapes(net: nn.Module, names: Iterable[str], size: Sequence[int]) -> dict[str, list[tuple[int, ...]]]:
    """Layer → the shape of what it reads of one image, for each time that it is called."""
    net = copy.deepcopy(net).float().cpu().eval()
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name].append(tuple(args[0].shape[1:]))

    for name in found:
        net.get_submodule(name).register_forward_pre_hook(partial(note, name))
    net(torch.zeros(1, *size))
    return found


def check_least(bill: Bill, share: float, thinning: Thinning | None) -> int:
    """The budget in whole MACs or parameters.  Raises InputError where nothing that can be chosen is within it."""
    budget = math.floor(share * bill.total * (1 + 1e-12))
    net = thinning.pruned(thinning.most) if thinning else bill.net
    rest, costs = bill.of(net, {name: [rank] for name, rank in bill.uniform(1).items()})
    least = rest + cheapest(list(costs.values()))
    if least > budget:
        how = "at rank 1" + (f" and rates of {RATES[-1]}" if thinning else "")
        raise InputError(
            f"budget: {bill.what}={share:g} is below the least possible: {type(bill.net).__name__} keeps "
            f"{math.ceil(1e4 * least / bill.total) / 1e4:g} {how}; ask for more, or decompose more layers (skip)"
        )
    return budget


def highest_uniform(bill: Bill, budget: int) -> int | None:
    """The highest rank that, given for all layers, is within a budget."""
    low, high = 0, max(max(DECOMPOSITIONS[bill.method].full_rank(bill.net.get_submodule(n))) for n in bill.layers)
    while low < high:
        rank = (low + high + 1) // 2
        low, high = (
            (rank, high) if bill.cost(bill.shaped(bill.net, bill.uniform(rank)))[0] <= budget else (low, rank - 1)
        )
    return low or None


def ranks_to_try(net: nn.Module, name: str, method: str, uniform: int | None) -> list[Rank]:
    """Ranks of a layer from all 1 on, at most `MOST_RANKS` and what the uniform rank is for it."""
    layer = net.get_submodule(name)
    found = ranks_of(layer, method)
    if len(found) > MOST_RANKS:
        bare, shaped = copy.deepcopy(layer).to("meta"), DECOMPOSITIONS[method].shaped_like
        found = [rank for rank in found if _parameters(shaped(bare, rank)) < _parameters(bare)]
        found = [found[place] for place in np.unique(np.linspace(0, len(found) - 1, MOST_RANKS).round().astype(int))]
    own = None if uniform is None else resolve(name, layer, uniform, method)
    return found if own is None or own in found else sorted([*found, own], key=np.sum)


def _parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


# What they lose


class Curve:
    """A layer's relative output error at each of its ranks.

    sweeps: of the fit to outputs; None: fitted to weights alone.  filters: so many are looked at where each is
    decomposed by itself.  options: of the method.
    """

    def __init__(self, layer, name, ranks, method, sweeps, filters, options):
        self.layer, self.name, self.ranks, self.sweeps, self.options = layer, name, ranks, sweeps, options
        self.decomposition = DECOMPOSITIONS[method]
        self.filters = filters if issubclass(self.decomposition, CPConv2d | FilterWise) else None
        self.errors = np.zeros(1)  # left dense, then at each rank

    def look(self, weight: Tensor, metric: Metric | None) -> None:
        chosen = drawn(len(weight), self.filters, self.options["seed"]).to(weight.device)
        dense, weight = copy.deepcopy(self.layer), weight[chosen]
        if len(chosen) < len(dense.weight):
            cut_outputs_(dense, chosen)
        found: list[float] = []
        for rank in self.ranks:
            small = self.decomposition.from_conv(dense, rank, name=self.name, **self.options)
            if self.sweeps is not None and metric is not None:
                small.fit_outputs_(weight, metric, self.sweeps)
            lost = (weight - small.composed_weight().detach()).flatten(1)
            # A higher rank can do whatever a lower one does.
            before = zip(found, self.ranks, strict=False)
            below = [error for error, other in before if np.all(np.less_equal(other, rank))]
            found.append(min([relative_error(lost, weight.flatten(1), metric), *below]))
        self.errors = np.array([0.0, *found])


def measure(
    net: nn.Module, looks: Mapping[str, Sequence[Look]], images: Tensor | None, how: Calibration, progress: bool
) -> None:
    """Let `looks` see the weights of their layers with the metrics of what these read, one layer at a time."""

    def unchanged(name: str) -> Callable[[Tensor, Metric | None], nn.Module]:
        def fit(weight: Tensor, metric: Metric | None) -> nn.Module:
            for look in looks[name]:
                look(weight, metric)
            return copy.deepcopy(net.get_submodule(name))

        return fit

    fits = {name: unchanged(name) for name in looks}
    if images is not None:
        how = replace(how, sequential=False)
        fit_to_outputs(net, net, fits, images, how, progress=progress, doing="measure layers")
        return
    warn("a budget without calibration images: errors of weights stand for those of outputs")
    for name, fit in fits.items():
        fit(composed(net.get_submodule(name)), None)


# What is chosen


@dataclass(frozen=True)
class Found:
    """A solution: for each layer the place of its option (0: dense), how far the network is pruned, cost and errors."""

    places: list[int]
    level: Level | None
    cost: int
    error: float


class Problem:
    """The options of all layers, with what they lose."""

    def __init__(self, bill: Bill, curves: Mapping[str, Curve], budget: int):
        self.bill, self.curves, self.budget = bill, curves, budget
        self.ranks = {name: curve.ranks for name, curve in curves.items()}
        self.errors = [curve.errors for curve in curves.values()]

    def uniform(self, rank: int) -> list[int]:
        """The places of a uniform rank; dense where the rank costs no less."""
        own = self.bill.uniform(rank)
        return [ranks.index(own[name]) + 1 if own[name] in ranks else 0 for name, ranks in self.ranks.items()]

    def error(self, places: Sequence[int]) -> float:
        return float(sum(error[place] for error, place in zip(self.errors, places, strict=True)))

    def chosen(self, places: Sequence[int]) -> dict[str, Rank | None]:
        return {
            name: ranks[place - 1] if place else None
            for (name, ranks), place in zip(self.ranks.items(), places, strict=True)
        }

    def solve(self, net: nn.Module, starts: Sequence[Sequence[int]] = (), level: Level | None = None) -> Found | None:
        """The least error within the budget, of the network or one pruned from it; None where there is none."""
        rest, costs = self.bill.of(net, self.ranks)
        costs = list(costs.values())
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

    def _found(self, places: list[int], rest: int, costs: Sequence[np.ndarray], level: Level | None) -> Found:
        cost = rest + sum(int(own[place]) for own, place in zip(costs, places, strict=True))
        return Found(places, level, cost, self.error(places))

    def uses_all(self, found: Found) -> bool:
        return found.cost >= (1 - EXACT) * self.budget

    def choice(self, found: Found, share: float, uniform: int | None, thinning: Thinning | None) -> Choice:
        bill, level = self.bill, found.level
        net = bill.net if level is None else thinning.pruned(level)
        ranks = self.chosen(found.places)
        cost, after = bill.cost(bill.shaped(net, ranks))
        if cost > self.budget:
            raise InputError(
                f"budget: the costs of {type(bill.net).__name__}'s layers do not add up; name ranks instead"
            )
        if not self.uses_all(found):
            warn(
                f"{100 * cost / bill.total:.2f}% of the {KINDS[bill.what]} are kept of {100 * share:g}% asked for: the "
                "steps between ranks are too coarse here for a choice that uses more and is not worse"
            )
        errors = {name: float(own[place]) for name, own, place in zip(ranks, self.errors, found.places, strict=True)}
        rates = {} if thinning is None else thinning.rates(thinning.none if level is None else level)
        for name, error in ({} if level is None else thinning.error_by_reader(level)).items():
            errors[name] = errors.get(name, 0.0) + error
        named = {alias: rank for name, rank in ranks.items() for alias in bill.layers[name]}
        costs = {
            name: (before, after[name]) for name, before in bill.by_layer.items() if name in {*ranks, *rates, *errors}
        }
        other = None
        if uniform is not None:
            whole = bill.cost(bill.shaped(bill.net, bill.uniform(uniform)))[0]
            other = Uniform(uniform, self.error(self.uniform(uniform)), whole / bill.total)
        return Choice(named, rates, bill.what, share, cost / bill.total, errors, costs, other)


def best_split(problem: Problem, ranked: Found | None, thinning: Thinning, share: float) -> Found:
    """The best solution that prunes on the way of `thinning.path` and chooses ranks for what is left of the budget.

    ranked: by ranks alone, which is taken where none is better; None where ranks alone cannot meet the budget.
    """
    path = thinning.path(problem.bill.by_layer)
    left = np.array([part for _, part in path])
    tried: dict[int, Found | None] = {0: ranked}

    def attempt(places: Iterable[int]) -> int:
        for place in places:
            if place not in tried:
                level = path[place][0]
                found = problem.solve(thinning.pruned(level), level=level)
                tried[place] = found and replace(found, error=found.error + thinning.error(level))
        able = [place for place, found in tried.items() if found]
        return min(
            able, key=lambda place: (place > 0 and not problem.uses_all(tried[place]), tried[place].error, place)
        )

    first = [int(np.argmax(left <= max(share**part, left[-1]))) for part in _SPLITS]
    alone = thinning.first_within(path, lambda net: problem.bill.cost(net)[0] <= problem.budget)  # no ranks at all
    best, known = attempt([*first, len(path) - 1, *([] if alone is None else [alone])]), sorted(tried)
    near = known.index(best)
    low, high = known[max(0, near - 1)], known[min(len(known) - 1, near + 1)]
    return tried[attempt(np.linspace(low, high, _REFINED + 2).round().astype(int).tolist())]
