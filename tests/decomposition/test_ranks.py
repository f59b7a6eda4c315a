"""Rank rules: what they resolve to, and VBMF against the literal minimisation of its free energy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import norton
from norton.decomposition import DECOMPOSITIONS, layer_ranks
from norton.decomposition.ranks import _first_that_meets, _rank_path
from norton.decomposition.vbmf import noise_variance, threshold, vbmf_rank
from norton.decomposition.weight_errors import weight_nmse
from norton.graph.plan import plan_of

pytestmark = pytest.mark.quick

METHODS = list(DECOMPOSITIONS)


def layer_for(method, seed=0):
    """A layer that the method takes, with a spectrum that falls."""
    generator = torch.Generator().manual_seed(seed)
    size = (10, 8, 1, 1) if method == "svd" else (10, 8, 3, 3)
    conv = nn.Conv2d(8, 10, size[2:], dtype=torch.float64)
    factors = [torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in size]
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    conv.weight.data = 0.3 * noise + torch.einsum("or,cr,ir,jr->ocij", *factors)
    return conv


def error_at(conv, method, ranks):
    rank = ranks[0] if len(ranks) == 1 else list(ranks)
    return weight_nmse(conv.weight, DECOMPOSITIONS[method].from_conv(conv, rank, name="conv").composed_weight())


def resolved(conv, method, rank, **options):
    [found] = layer_ranks(nn.Sequential(conv), rank, method=method, **options).values()
    return found


@pytest.mark.parametrize("method, rank, expected", [
    ("cp", {"fraction": 1}, 9), ("cp", {"fraction": 0.25}, 2), ("cp", {"fraction": 0.5}, 5), ("cp", {"fraction": 0}, 1),
    ("cp_layer", {"fraction": 0.25}, 18), ("tucker", {"fraction": 0.25}, [2, 3]), ("tucker", [3, 4], [3, 4]),
    ("tucker", 9, [8, 9]), ("tucker_filter", {"fraction": 0.5}, 4), ("tt", {"fraction": 1}, [8, 24, 10]),
    ("tt", 9, [8, 9, 9]), ("tt", [2, 9, 10], [2, 6, 10]), ("tt_filter", 2, [2, 2]), ("tt_filter", [1, 3], [1, 3]),
    ("tt_filter", 8, [8, 3]), ("svd", {"fraction": 0.5}, 4), ("svd", 8, 8),
    ("svd", {"*": {"fraction": 0.5}}, 4), ("tucker", {"x": 1, "0": [1, 2]}, [1, 2]),
])  # fmt: skip
def test_numbers_and_fractions(method, rank, expected):
    if isinstance(rank, dict) and "x" in rank:
        rank = {"0": rank["0"]}
    assert resolved(layer_for(method), method, rank) == expected


def test_the_first_pattern_decides_with_any_rule():
    net = nn.Sequential(*(nn.Conv2d(8, 10, 3) for _ in range(4)))
    rank = {"0": [2, 3], "1": {"fraction": 0.5}, "2": None, "*": 4}
    assert layer_ranks(net, rank, method="tucker") == {"0": [2, 3], "1": [4, 5], "3": [4, 4]}
    small = norton.decompose(net, rank, method="tucker")
    assert plan_of(small)[-1]["ranks"] == {"0": [2, 3], "1": [4, 5], "3": [4, 4]}
    assert small[1].rank == (4, 5)


def test_numbers_for_all_layers_are_clipped():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3))
    assert layer_ranks(net, [16, 32], method="tucker") == {"0": [3, 16], "1": [16, 32]}
    assert layer_ranks(net, 20, method="tucker") == {"0": [3, 16], "1": [16, 20]}
    assert layer_ranks(net, [8, 48, 8], method="tt") == {"0": [3, 9, 8], "1": [8, 24, 8]}
    assert layer_ranks(net, 7, method="tucker_filter") == {"0": 3, "1": 7}
    assert layer_ranks(net, [40], method="cp_layer") == {"0": 27, "1": 40}
    assert plan_of(norton.decompose(net, 30, method="cp_layer", iterations=1))[-1]["ranks"] == {"0": 27, "1": 30}
    linear = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(16, 10))
    assert layer_ranks(linear, 10, method="svd") == {"0": 3, "2": 10}


@pytest.mark.parametrize("method, rank, message", [
    ("svd", 11, "2: rank 11 exceeds 10"),  # more than any layer has room for
    ("svd", [4, 4], "has 2 numbers; decomposition 'svd' has one rank"),
    ("svd", {"0": 4}, "0: rank 4 exceeds 3"),  # named, so meant
    ("svd", "4", "rank '4' is not a whole number"),
    ("cp", 10, "3: rank 10 exceeds 9, at which a 3x3"),
    ("cp", 4, "4: rank 4 exceeds 3, at which a 1x3"),
])  # fmt: skip
def test_numbers_that_do_not_fit(method, rank, message):
    layers = [nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(16, 10), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (1, 3))]
    with pytest.raises(norton.InputError, match=message):
        layer_ranks(nn.Sequential(*layers), rank, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bound", [0, 0.02, 0.3, 1])
def test_the_nmse_bound_is_met_by_the_least_rank(method, bound):
    conv = layer_for(method)
    rank = resolved(conv, method, {"nmse": bound})
    found = (rank,) if isinstance(rank, int) else tuple(rank)
    way, _ = _rank_path(DECOMPOSITIONS[method], conv, bound)
    place = way.index(found)
    full = DECOMPOSITIONS[method].full_rank(conv)
    assert way[0] == (1,) * len(full) and way[-1] == full
    assert all(b >= a for one, two in pairwise(way) for a, b in zip(one, two, strict=True))
    if bound:
        assert error_at(conv, method, found) <= bound
    slow = bound == 0 or method == "cp_layer"
    for below in way[max(place - 1, 0) : place] if slow else way[:place]:
        assert error_at(conv, method, below) > bound
    small = norton.decompose(nn.Sequential(conv), {"nmse": bound}, method=method)
    if bound:
        assert norton.nmse(nn.Sequential(conv), small) <= bound


def test_the_nmse_bound_holds_layer_by_layer_in_single_precision():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 16, 5), nn.Conv2d(16, 8, 3), nn.Conv2d(8, 8, (1, 3)))
    small = norton.decompose(net, {"nmse": 0.1}, method="tt")
    assert all(error <= 0.1 for error in norton.layer_nmse(net, small).values())
    assert {len(rank) for rank in plan_of(small)[-1]["ranks"].values()} == {3}


@pytest.mark.parametrize("count", [1, 2, 3, 10, 37])
def test_the_search_finds_the_first_place_from_any_guess(count):
    for first in range(count):
        for guess in range(count):
            asked = []

            def meets(place, first=first, asked=asked):
                asked.append(place)
                return place >= first

            assert _first_that_meets(meets, count, guess) == first
            assert len(asked) == len(set(asked)) <= 2 * np.log2(count) + 2


# VBMF


def noisy(shape, rank, strength, seed, variance=1.0):
    """A matrix of known rank, each component `strength` times as strong as the threshold, and noise."""
    rng = np.random.default_rng(seed)
    short, long = sorted(shape)
    u, v = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in shape)
    signal = strength * threshold(short, long) * variance**0.5 * (u @ v.T)
    return torch.from_numpy(signal + variance**0.5 * rng.standard_normal(shape))


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (30, 300), (50, 50)])
@pytest.mark.parametrize("rank", [0, 1, 5, 12])
def test_vbmf_finds_a_known_rank(shape, rank):
    for variance in (1.0, 1e-6):
        matrix = noisy(shape, rank, 1.8, seed=rank, variance=variance)
        assert vbmf_rank(matrix) == rank
        values = torch.linalg.svdvals(matrix)
        assert noise_variance(values, max(shape)) == pytest.approx(variance, rel=0.15)


def test_vbmf_of_matrices_without_noise():
    rng = np.random.default_rng(0)
    product = torch.from_numpy(rng.standard_normal((20, 3)) @ rng.standard_normal((3, 30)))
    assert vbmf_rank(product) == 3
    assert vbmf_rank(torch.zeros(4, 5)) == 0


def component_energy(gamma, short, long, variance):
    """2F of one component, literally: iterated conditional modes over its means, variances and prior variances.

    Nakajima et al. 2013, section 2: V = b aᵀ + noise, q(a) = N(a_hat, sa I_M), q(b) = N(b_hat, sb I_L), priors of
    variance ca and cb, which are learnt; a component that is switched off has 2F = 0.
    """
    a = b = np.sqrt(gamma)
    ca, cb = (a**2 / long, b**2 / short)
    sa = sb = variance / max(gamma, 1e-12)
    for _ in range(600):
        sa = 1 / ((b**2 + short * sb) / variance + 1 / ca)
        a = gamma * b * sa / variance
        sb = 1 / ((a**2 + long * sa) / variance + 1 / cb)
        b = gamma * a * sb / variance
        ca, cb = max((a**2 + long * sa) / long, 1e-30), max((b**2 + short * sb) / short, 1e-30)
    energy = long * np.log(ca / sa) + short * np.log(cb / sb)
    energy += (a**2 + long * sa) / ca + (b**2 + short * sb) / cb - (long + short)
    return energy + (-2 * a * b * gamma + (a**2 + long * sa) * (b**2 + short * sb)) / variance


def literal_vbmf(matrix):
    """Rank and variance at the least free energy over a grid of variances of the noise."""
    short, long = sorted(matrix.shape)
    gammas = torch.linalg.svdvals(matrix).numpy()
    best = None
    top = np.square(gammas).sum() / (short * long)
    for variance in np.geomspace(top * 0.05, top, 40):
        parts = [component_energy(gamma, short, long, variance) for gamma in gammas]
        energy = short * long * np.log(variance) + np.square(gammas).sum() / variance + sum(min(p, 0) for p in parts)
        if best is None or energy < best[0]:
            best = energy, sum(p < 0 for p in parts), variance
    return best[1:]


@pytest.mark.parametrize(
    "shape, rank, strength", [((6, 9), 2, 1.6), ((5, 15), 1, 1.1), ((8, 8), 3, 1.3), ((6, 10), 0, 1)]
)
def test_vbmf_against_the_literal_minimisation(shape, rank, strength):
    matrix = noisy(shape, rank, strength, seed=3)
    found, variance = literal_vbmf(matrix)
    assert vbmf_rank(matrix) == found
    assert noise_variance(torch.linalg.svdvals(matrix), max(shape)) == pytest.approx(variance, rel=0.08)  # of the grid


@pytest.mark.parametrize("short, long", [(5, 5), (6, 9), (5, 40)])
def test_the_threshold_is_where_the_free_energy_of_a_component_changes_sign(short, long):
    limit = threshold(short, long)
    assert component_energy(limit * 1.005, short, long, 1.0) < 0
    assert not component_energy(limit * 0.995, short, long, 1.0) < 0


@pytest.mark.parametrize("method", ["svd", "tucker"])
def test_recommended_ranks_and_their_calibration(method):
    if method == "svd":
        layer = nn.Linear(60, 40)
        layer.weight.data = noisy((40, 60), 5, 1.8, seed=0).float()
        found, full = (5,), (40,)
    else:
        rng = np.random.default_rng(0)
        layer = nn.Conv2d(30, 40, 3)
        ends = [np.linalg.qr(rng.standard_normal(n))[0] for n in ((40, 6), (30, 4))]
        core = 20 * rng.standard_normal((6, 4, 3, 3))
        weight = np.einsum("oa,cb,abij->ocij", *ends, core) + rng.standard_normal((40, 30, 3, 3))
        layer.weight.data = torch.from_numpy(weight).float()
        found, full = (4, 6), (30, 40)  # of inputs, of outputs

    def at(calibration):
        rank = resolved(layer, method, {"vbmf": calibration})
        return (rank,) if isinstance(rank, int) else tuple(rank)

    assert at(0) == at(0.0) == found
    assert at(-1) == (1,) * len(found)
    assert at(1) == full
    assert at(0.5) == tuple(math.floor(f + 0.5 * (n - f) + 0.5) for f, n in zip(found, full, strict=True))
    assert at(-0.5) == tuple(math.floor((f + 1) / 2 + 0.5) for f in found)
    nn.init.normal_(layer.weight)
    assert at(0) == (1,) * len(found)


def test_rules_that_need_values_say_so():
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(8, 10, 3))
    assert layer_ranks(net, {"fraction": 0.5}) == {"0": 5}
    with pytest.raises(norton.InputError, match="0: the weights have no values yet"):
        layer_ranks(net, {"nmse": 0.5})
