"""Ranks from a budget, against every combination counted and measured literally."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from helpers.budgets import AS_MEASURED, OUTPUTS, QUICK, WEIGHTS, Toy, fitted_error
from helpers.networks import randomise_
from torch import nn

import norton
from norton import DecomposeOptions, InputError, PruneOptions, choose_ranks
from norton.graph.plan import OPERATIONS
from norton.pruning import Pruning


@pytest.fixture(scope="module")
def every(toy, images):
    """Layer → rank → literal error; and every combination of ranks with its MACs, parameters and error."""
    full = {"conv1": 6, "conv2": 9, "conv3": 3}
    errors = {}
    for name, most in full.items():
        found = [fitted_error(toy, name, rank, images, **AS_MEASURED) for rank in range(1, most + 1)]
        errors[name] = {None: 0.0} | dict(enumerate(np.minimum.accumulate(found), start=1))
    combinations = {}
    for ranks in itertools.product(*(errors[name] for name in full)):
        chosen = dict(zip(full, ranks, strict=True))
        shaped = copy.deepcopy(toy)
        decided = {name: rank for name, rank in chosen.items() if rank}
        OPERATIONS["decompose"](shaped, {"method": "cp", "ranks": decided})
        cost = norton.complexity(shaped)
        error = sum(errors[name][rank] for name, rank in chosen.items())
        combinations[ranks] = cost.macs, cost.params, error
    return errors, combinations


@pytest.mark.parametrize(
    "budget", [{"macs": 0.6}, {"macs": 0.75}, {"macs": 0.93}, {"params": 0.5}, {"params": 0.75}], ids=str
)
@pytest.mark.filterwarnings("ignore:.*too coarse")
def test_the_best_of_all_combinations(toy, images, every, budget):
    errors, combinations = every
    [(what, share)] = budget.items()
    place = ("macs", "params").index(what)
    most = share * combinations[None, None, None][place]
    within = [found for found in combinations.values() if found[place] <= most]
    best = min(found[2] for found in within)
    if min(found[place] for found in within if found[2] == best) < 0.99 * most:  # then one nearer may be taken
        dense = combinations[None, None, None][place]
        alone = {name: [(None,) * i, (None,) * (2 - i)] for i, name in enumerate(errors)}
        saving = {
            name: [None, *(r for r in errors[name] if r and combinations[(*a, r, *b)][place] < dense)]
            for name, (a, b) in alone.items()
        }
        within = [combinations[ranks] for ranks in itertools.product(*saving.values())]
        nearer = [found[2] for found in within if 0.99 * most <= found[place] <= most and found[2] <= 1.05 * best]
        best = min(nearer, default=best)
    choice = choose_ranks(toy, images, **budget, decomposition=OUTPUTS)
    assert choice.error == pytest.approx(best, rel=1e-3)
    for name, rank in choice.ranks.items():
        assert choice.errors[name] == pytest.approx(errors[name][rank], rel=1e-3, abs=1e-6)
    ranks = tuple(choice.ranks.values())
    assert choice.share * combinations[None, None, None][place] == combinations[ranks][place] <= most
    uniform = [rank for rank in range(1, 10) if combinations[min(rank, 6), rank, min(rank, 3)][place] <= most]
    assert (choice.uniform.rank if choice.uniform else None) == max(uniform, default=None)
    assert not uniform or choice.error <= choice.uniform.error


def test_errors_of_the_objective_weights(toy, images):
    choice = choose_ranks(toy, images, macs=0.7, decomposition=WEIGHTS)
    for name, rank in choice.ranks.items():
        if rank is not None:
            assert choice.errors[name] == pytest.approx(fitted_error(toy, name, rank, images, **QUICK), rel=1e-3)


def test_the_uniform_error_is_its_own(toy, images, every):
    errors, combinations = every
    choice = choose_ranks(toy, images, macs=0.6, decomposition=OUTPUTS)
    own = {name: min(choice.uniform.rank, max(r for r in errors[name] if r)) for name in errors}
    dense = norton.complexity(toy).by_layer
    shaped = norton.complexity(norton.decompose(toy, own, starts=1, iterations=1)).by_layer
    kept = [name for name in own if shaped[name].macs < dense[name].macs]  # else dense is better, and cheaper
    assert choice.uniform.error == pytest.approx(sum(errors[name][own[name]] for name in kept), rel=1e-3)
    assert choice.uniform.share == combinations[tuple(own.values())][0] / norton.complexity(toy).macs


@pytest.mark.parametrize("what, shares", [("macs", (0.3, 0.5)), ("params", (0.35,))])
def test_many_layers_meet_the_budget_to_a_percent(narrow, what, shares):
    errors, quick = [], DecomposeOptions(options={"starts": 1, "iterations": 2})
    for share in shares:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", "a budget without calibration images")
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            choice = choose_ranks(narrow, **{what: share}, decomposition=quick)
        small = norton.decompose(narrow, choice.ranks, starts=1, iterations=1)
        kept = getattr(norton.complexity(small), what) / getattr(norton.complexity(narrow), what)
        assert choice.share == kept and 0.99 * share <= kept <= share
        assert choice.uniform is None or choice.error <= choice.uniform.error
        assert sum(after for _, after in choice.costs.values()) < sum(before for before, _ in choice.costs.values())
        errors.append(choice.error)
    assert errors == sorted(errors, reverse=True)


@pytest.mark.filterwarnings("ignore:a budget without", "ignore:.*too coarse")
@pytest.mark.parametrize("method, what, share", [
    ("tucker", "macs", 0.5),
    ("tt_filter", "macs", 0.6),
    ("cp_layer", "params", 0.4),
    ("svd", "params", 0.9),
])  # fmt: skip
def test_other_methods_count_exactly(toy, narrow, method, what, share):
    net = narrow if method == "svd" else toy
    options = {"iterations": 3} if method in ("tucker", "cp_layer") else {}
    # the errors of outputs, for which there are no images
    how = DecomposeOptions(method, objective="outputs", options=options)
    choice = choose_ranks(net, **{what: share}, decomposition=how)
    small = norton.decompose(net, choice.ranks, method, **options)
    before, after = (getattr(norton.complexity(one), what) for one in (net, small))
    assert after == choice.share * before <= share * before
    assert choice.uniform is None or choice.error <= choice.uniform.error


def test_a_sample_of_filters_is_of_the_layer(toy, images):
    """Eight of a layer's filters: another error than that of all, but near it; and the same each time."""
    whole = choose_ranks(toy, images, macs=0.6, decomposition=OUTPUTS)
    some = [choose_ranks(toy, images, macs=0.6, filters=8, decomposition=OUTPUTS) for _ in range(2)]
    assert some[0] == some[1]
    same = [name for name, rank in whole.ranks.items() if rank and some[0].ranks[name] == rank]
    assert same
    for name in same:
        assert some[0].errors[name] != whole.errors[name]
        assert some[0].errors[name] == pytest.approx(whole.errors[name], rel=0.5)


def test_a_shared_layer_has_one_rank(images):
    net = randomise_(Toy())
    net.conv2 = nn.Conv2d(12, 12, 3, padding=1)
    net.norm2 = nn.BatchNorm2d(12)
    net.conv3 = net.conv2
    net.fc = nn.Linear(12, 5)
    choice = choose_ranks(net.eval(), images, macs=0.5, decomposition=OUTPUTS)
    assert choice.ranks["conv2"] == choice.ranks["conv3"] is not None
    small = norton.decompose(net, choice.ranks, **QUICK)
    assert norton.complexity(small).macs == choice.share * norton.complexity(net).macs


def test_images_tell_the_size_where_the_network_does_not():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    choice = choose_ranks(net, torch.randn(16, 3, 10, 10), macs=0.6, decomposition=OUTPUTS)
    small = norton.decompose(net, choice.ranks, **QUICK)
    kept, whole = (norton.complexity(one, (3, 10, 10)).macs for one in (small, net))
    assert choice.share == kept / whole <= 0.6


@pytest.mark.parametrize("filters", [0, -1, 1.5, True])
def test_filters_looked_at(toy, images, filters):
    with pytest.raises(InputError, match=r"filters is .*; it must be a whole number of at least 1, or None"):
        choose_ranks(toy, images, macs=0.5, filters=filters)


# Bad input


@pytest.mark.parametrize("settings, message", [
    ({}, "neither macs nor params is given"),
    ({"macs": 0.4, "params": 0.4}, "both macs and params are given"),
    ({"macs": 1.0}, "macs is 1.0; it is the share to keep, above 0 and below 1"),
    ({"params": 0}, "params is 0;"),
    ({"macs": float("nan")}, "macs is nan"),
    ({"macs": "half"}, "macs is 'half'"),
    ({"macs": True}, "macs is True"),
    ({"macs": 0.01}, r"macs=0.01 is below the least possible: Toy keeps 0\.\d+ at rank 1; ask for more"),
    ({"macs": 0.01, "pruning": {}}, r"keeps 0\.\d+ at rank 1 and rates of 0.8"),
    ({"macs": 0.4, "decomposition": {"objective": "dreams"}}, "objective is 'dreams'"),
    ({"macs": 0.4, "decomposition": {"method": "cpp"}}, "unknown decomposition 'cpp'"),
    ({"macs": 0.4, "decomposition": {"skip": ["conv9"]}}, "'conv9' matches no convolution"),
    ({"macs": 0.4, "decomposition": {"options": {"speed": 3}}}, "has no option speed"),
    ({"macs": 0.4, "pruning": {"criterion": "index"}}, "which 'index' is not"),
    (
        {"macs": 0.4, "pruning": {"options": PruneOptions(allocation="global")}},
        "allocation=global takes one number",
    ),
    ({"macs": 0.4, "images": torch.zeros(4, 3, 8, 8)}, "3×8×8; the network takes 3×11×11"),
])  # fmt: skip
def test_bad_input(toy, settings, message):
    classes = {"decomposition": DecomposeOptions, "pruning": Pruning}
    with pytest.raises(InputError, match=message):
        made = {key: classes[key](**settings[key]) for key in settings.keys() & classes.keys()}
        choose_ranks(toy, **settings | made)


def test_a_single_layer_has_no_budget():
    with pytest.raises(InputError, match="this one is a single one"):
        choose_ranks(nn.Conv2d(3, 4, 3), macs=0.5)


def test_steps_too_coarse_are_said(toy):
    with pytest.warns(UserWarning, match="too coarse here"):
        how = DecomposeOptions(skip=["conv1", "conv2"], options=QUICK)
        choice = choose_ranks(toy, macs=0.98, decomposition=how)
    assert choice.share < 0.95 and choice.ranks == {"conv3": 1}
