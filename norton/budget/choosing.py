"""Ranks from a budget: a share of MACs or parameters to keep, spent where it lowers the errors of layers' outputs most.

The error (`norton.budget.layer_errors`) is measured for each layer by itself, at each of its ranks
(`norton.budget.rank_curves`); the choice is the one with the least sum over layers that the budget allows
(`norton.budget.search`).

With `pruning`, filters may go too.  What a layer no longer reads adds to its error, in the same unit, so that both
ways to save compete (`norton.budget.pruning_curves`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from norton.budget.choice import Choice
from norton.budget.costs import Costs, asked_share, highest_uniform_rank
from norton.budget.knapsack import cheapest
from norton.budget.layer_errors import Probe, probe_layers
from norton.budget.pruning_curves import RATES, PruningCurves, check_criterion, pruning_curves_of
from norton.budget.rank_curves import RankCurve, ranks_to_try
from norton.budget.search import RankProblem, best_split
from norton.calibration import Calibration, ImageSource, check_images, read_images
from norton.calibration.batches import Images, batches_of
from norton.common.checks import check_type, is_whole_number
from norton.common.errors import InputError
from norton.decomposition.options import DecomposeOptions
from norton.graph.copies import copied
from norton.graph.input_sizes import stated_size
from norton.graph.inputs import Example, remember_example_, stated_inputs
from norton.graph.layers import check_has_values, network_in
from norton.pruning.options import Pruning


@torch.no_grad()
def choose_ranks(
    net: nn.Module,
    images: ImageSource | None = None,
    *,
    macs: float | None = None,
    params: float | None = None,
    decomposition: DecomposeOptions = DecomposeOptions(),
    pruning: Pruning | None = None,
    calibration: Calibration | None = None,
    filters: int | None = 64,
    progress: bool = False,
) -> Choice:
    """Choose the ranks of a network's layers, and with `pruning` its pruning rates, for a budget.

    macs, params: the share to keep of what `norton.complexity` counts for `net`; one of the two, between 0 and 1.
    images: as `norton.decompose` takes them; where None, errors of weights stand for those of outputs, with a warning.
    They also tell what the network takes, where it states nothing.
    decomposition, calibration: of the `norton.decompose` that is to follow.  Where layers are fitted to outputs,
    errors are those after at most one sweep, of `cp` from one start where `starts` is the default.

    filters: so many of a layer, drawn by the seed, are looked at where the method decomposes filter by filter; None:
    all.  Of a layer's ranks those are tried that cost less than the layer, or 16 of them evenly spread.  That takes the
    time of gathering covariances once, and of fitting so many filters of each layer at each rank.

    pruning: the `norton.prune` that is to follow, if filters are to go too, at rates that are multiples of 0.1.  The
    best of several ways to share the budget between it and ranks is taken; ranks or pruning alone are among them.

    The errors never add up to more than at the highest uniform rank within the budget.  Where the least sum leaves over
    1% of the budget, one that does not is taken if it is at most 5% larger, and where there is none a warning says so.
    Raises InputError for a share outside (0, 1), none or two of them, one below the least possible, and what
    `norton.decompose` and `norton.prune` refuse.
    """
    check_type("decomposition", decomposition, DecomposeOptions)
    check_type("pruning", pruning, (Pruning, type(None)))
    check_has_values(network_in(net))
    net = copied(network_in(net))
    images, _ = read_images(net, images)
    what, share = asked_share(macs, params)
    calibration = calibration or Calibration()
    if filters is not None and not is_whole_number(filters, 1):
        raise InputError(f"filters is {filters!r}; it must be a whole number of at least 1, or None for all")
    method, size = decomposition.method, _checked_size(net, images)
    remember_example_(net, size)
    costs = Costs(net, what, method, decomposition.skip, size)
    prunable = None if pruning is None else pruning_curves_of(net, pruning)
    budget = checked_budget(costs, share, prunable)
    uniform = highest_uniform_rank(costs, budget)
    candidates = costs.cheaper_ranks({name: ranks_to_try(net, name, method, uniform) for name in costs.layers})
    sweeps = min(1, calibration.sweeps) if decomposition.fits_outputs(images) else None
    curves = {
        name: RankCurve(net.get_submodule(name), name, ranks, decomposition, sweeps, filters)
        for name, ranks in candidates.items()
    }
    probe_layers(net, _probes(curves, prunable, filters, decomposition.seed), images, calibration, progress)
    problem = RankProblem(costs, curves, budget)
    found = problem.solve(net, [] if uniform is None else [problem.uniform(uniform)])
    if prunable:
        found = best_split(problem, found, prunable, share)
    assert found is not None  # as `checked_budget` says
    return problem.choice(found, share, uniform, prunable)


def _checked_size(net: nn.Module, images: Images | None) -> Example | None:
    """What a network is counted for, if it states nothing: one of the images, as size or inputs.  Checks the images."""
    if images is not None:
        check_images(net, images)
    if images is None or stated_size(net) or stated_inputs(net):
        return None
    if isinstance(images, Tensor):
        return tuple(images.shape[1:])
    one = batches_of(images, 1)[0].first(1)
    return one.args or one.kwargs


def _probes(
    curves: Mapping[str, RankCurve], prunable: PruningCurves | None, filters: int | None, seed: int
) -> dict[str, list[Probe]]:
    """Layer → what measures the errors of its ranks, and of what it no longer reads."""
    probes: dict[str, list[Probe]] = {name: [curve.probe] for name, curve in curves.items() if curve.ranks}
    if prunable:
        for name in prunable.readers():
            probes.setdefault(name, []).append(prunable.probe(name, filters, seed))
    return probes


def check_feasible(
    net: nn.Module,
    *,
    macs: float | None = None,
    params: float | None = None,
    decomposition: DecomposeOptions = DecomposeOptions(),
    pruning: Pruning | None = None,
) -> None:
    """Raise InputError for what `choose_ranks` would refuse before it reads weights or images."""
    what, share = asked_share(macs, params)
    costs, prunable = Costs(net, what, decomposition.method, decomposition.skip, None), None
    if pruning is not None:
        check_criterion(pruning.criterion)
        prunable = pruning_curves_of(net, replace(pruning, criterion="l2"))  # which needs no images
    checked_budget(costs, share, prunable)


def checked_budget(costs: Costs, share: float, prunable: PruningCurves | None) -> int:
    """The budget in whole MACs or parameters.  Raises InputError where nothing that can be chosen is within it."""
    budget = math.floor(share * costs.total * (1 + 1e-12))
    net = prunable.pruned(prunable.most_pruned) if prunable else costs.net
    rest, by_layer = costs.by_rank(net, {name: [rank] for name, rank in costs.uniform_ranks(1).items()})
    least = rest + cheapest(list(by_layer.values()))
    if least > budget:
        how = "at rank 1" + (f" and rates of {RATES[-1]}" if prunable else "")
        raise InputError(
            f"budget: {costs.what}={share:g} is below the least possible: {type(costs.net).__name__} keeps "
            f"{math.ceil(1e4 * least / costs.total) / 1e4:g} {how}; ask for more, or decompose more layers (skip)"
        )
    return budget
