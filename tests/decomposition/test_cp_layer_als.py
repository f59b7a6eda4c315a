"""Layer-wise CP: its alternating least squares against a literal pass and tensorly's `parafac`."""

from statistics import median

import pytest
import tensorly
import torch
from torch import nn

from norton.decomposition import DECOMPOSITIONS
from norton.decomposition.cp_layer import alternate, exact_terms, singular_terms
from norton.decomposition.layers import one_thread


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def structured(*shape, rank=6, noise=0.3, seed=0):
    factors = [normal(n, rank, seed=seed + i) for i, n in enumerate(shape)]
    return torch.einsum("or,cr,ir,jr->ocij", *factors) + noise * normal(*shape, seed=seed + 9)


def starts_of(weight, rank):
    return [torch.stack(pair) for pair in zip(singular_terms(weight, rank, 0), exact_terms(weight, rank), strict=True)]


def composed(factors):
    return torch.einsum("or,cr,ir,jr->ocij", *factors)


def relative(weight, factors):
    return (torch.linalg.vector_norm(weight - composed(factors)) / torch.linalg.vector_norm(weight)).item()


def literal_pass(weight, factors):
    """Each factor in turn by least squares over all entries, with the others as they are."""
    factors = list(factors)
    for mode, letter in enumerate("ocij"):
        others = [(name, factors[i]) for i, name in enumerate("ocij") if i != mode]
        terms = torch.einsum(
            ",".join(f"{name}r" for name, _ in others) + "->" + "".join(n for n, _ in others) + "r",
            *(factor for _, factor in others),
        ).flatten(0, 2)
        unfolded = torch.movedim(weight, "ocij".index(letter), 0).flatten(1)
        factors[mode] = torch.linalg.lstsq(terms, unfolded.T).solution.T
    return factors


@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (4, 6, 2, 5), (9, 3, 1, 3)])
def test_a_pass_is_the_literal_one(shape):
    weight = normal(*shape)
    start = [normal(n, 4, seed=i) for i, n in enumerate(shape)]
    errors, found, _ = alternate(weight, [torch.stack([factor, -2 * factor]) for factor in start], 1, 0.0)
    expected = literal_pass(weight, start)
    for one in range(2):  # scales of the start do not matter
        torch.testing.assert_close(composed([factor[one] for factor in found]), composed(expected))
        assert errors[one].item() == pytest.approx(relative(weight, expected), rel=1e-8)


@pytest.mark.parametrize("weight", [normal(12, 8, 3, 3), structured(16, 12, 3, 3), structured(20, 3, 5, 5, noise=0.01)])
@pytest.mark.parametrize("rank", [1, 5, 17])
def test_errors_fall_and_are_those_of_the_factors(weight, rank):
    errors, found, history = alternate(weight, starts_of(weight, rank), 60, 0.0)
    assert (history.diff(dim=0) <= 0).all()
    for start in range(2):
        assert errors[start].item() == pytest.approx(relative(weight, [f[start] for f in found]), rel=1e-6, abs=1e-9)


def test_starts_do_not_depend_on_each_other():
    weight, (first, second) = structured(16, 12, 3, 3), (0, 1)
    both = starts_of(weight, 8)
    errors, _, _ = alternate(weight, both, 30, 0.0)
    for one in (first, second):
        alone, _, _ = alternate(weight, [factor[one : one + 1] for factor in both], 30, 0.0)
        assert alone[0].item() == pytest.approx(errors[one].item(), rel=1e-8)


@pytest.mark.filterwarnings("ignore:Trying to compute SVD")
@pytest.mark.parametrize("rank", [4, 16, 40])
@pytest.mark.parametrize("make", [normal, structured])
def test_as_accurate_as_parafac_from_its_default_start(make, rank):
    """Both end in one of many local minima: ours in a lower one as a rule, and in none that is much higher."""
    ratios = []
    for seed in range(5):
        weight = make(24, 16, 3, 3, seed=20 * seed)
        conv = nn.Conv2d(16, 24, 3, dtype=torch.float64)
        conv.weight.data = weight
        ours = torch.linalg.vector_norm(weight - DECOMPOSITIONS["cp_layer"].from_conv(conv, rank).composed_weight())
        with tensorly.backend_context("pytorch"):
            theirs = tensorly.decomposition.parafac(weight, rank, init="svd", n_iter_max=100, random_state=0)
            theirs = torch.linalg.vector_norm(weight - tensorly.cp_to_tensor(theirs))
        ratios.append((ours / theirs).item())
    assert median(ratios) < 1 and max(ratios) < 1.005, ratios


@pytest.mark.parametrize("only, threads", [(True, 1), (False, 2)])
def test_threads_are_given_back(only, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread(only):
            assert torch.get_num_threads() == threads
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
