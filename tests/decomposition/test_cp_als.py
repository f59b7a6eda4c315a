"""The batched solver against the literal one, and what a decomposition must satisfy whatever the weights."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from norton.common.errors import InputError
from norton.decomposition import cp_filters
from norton.decomposition.factors import Factors, reconstruct, squared_norms

SHAPES = [(5, 16, 3, 3), (5, 4, 3, 3), (4, 6, 1, 3), (4, 20, 3, 5), (3, 3, 5, 5)]


def random_weight(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def low_rank_weight(filters: int, channels: int, rank: int, dtype: torch.dtype = torch.float64) -> Tensor:
    shapes = [(size, rank, filters) for size in (channels, 3, 3)]
    return reconstruct(Factors(*(random_weight(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))))


def errors(weight: Tensor, factors: Factors) -> Tensor:
    """‖W[o] - Ŵ[o]‖² / ‖W[o]‖², (O,)."""
    weight, dense = weight.double(), reconstruct(Factors(*(factor.double() for factor in factors)))
    return (weight - dense).flatten(1).square().sum(1) / weight.flatten(1).square().sum(1)


def literal_error(one: np.ndarray, rank: int, seed: int, iterations: int = 300) -> float:
    """Plain ALS on one filter (C, kh, kw), as in Kolda & Bader 2009, figure 3.3, from a random start."""
    rng = np.random.default_rng(seed)
    factors = [rng.random((size, rank)) for size in one.shape]
    for _ in range(iterations):
        for mode in range(3):
            a, b = (factors[m] for m in range(3) if m != mode)
            khatri_rao = np.einsum("ir,jr->ijr", a, b).reshape(-1, rank)
            unfolding = np.moveaxis(one, mode, 0).reshape(one.shape[mode], -1)
            factors[mode] = unfolding @ khatri_rao @ np.linalg.pinv((a.T @ a) * (b.T @ b))
    return np.square(one - np.einsum("ir,jr,kr->ijk", *factors)).sum() / np.square(one).sum()


@pytest.mark.parametrize("rank", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("structured", [False, True])
def test_no_worse_than_the_literal_algorithm(rank, structured):
    weight = random_weight(6, 24, 3, 3)
    if structured:
        weight = 0.3 * weight + low_rank_weight(6, 24, 3, torch.float32)
    literal = np.mean([literal_error(one, rank, seed=i) for i, one in enumerate(weight.double().numpy())])
    assert errors(weight, cp_filters(weight, rank)).mean() <= 1.005 * literal


def test_no_better_than_any_matrix_of_the_rank():
    weight = random_weight(6, 24, 3, 3, dtype=torch.float64)
    values = torch.linalg.svdvals(weight.flatten(2)).square()
    for rank in range(1, 9):
        bound = values[:, rank:].sum(1) / values.sum(1)
        assert (errors(weight, cp_filters(weight, rank)) >= bound * (1 - 1e-9)).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("channels", [4, 32])
def test_recovers_filters_of_low_rank(rank, channels):
    weight = low_rank_weight(8, channels, rank)
    assert errors(weight, cp_filters(weight, rank, tolerance=1e-9, iterations=2000)).max() < 1e-8
    assert errors(weight.float(), cp_filters(weight.float(), rank)).median() < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
def test_error_falls_with_rank(shape):
    weight = random_weight(*shape)
    means = [errors(weight, cp_filters(weight, rank)).mean() for rank in range(1, min(10, shape[2] * shape[3] + 1))]
    assert all(after <= before + 1e-6 for before, after in pairwise(means))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-12), (torch.float64, 1e-28)])
def test_full_rank_is_exact(shape, dtype, limit):
    weight = random_weight(*shape, dtype=dtype)
    assert errors(weight, cp_filters(weight, shape[2] * shape[3])).max() < limit


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_order_and_balance(shape):
    filters, channels, kh, kw = shape
    rank = min(4, kh * kw)
    factors = cp_filters(random_weight(*shape), rank)
    assert [tuple(factor.shape) for factor in factors] == [(size, rank, filters) for size in (channels, kh, kw)]
    assert all(factor.is_contiguous() for factor in factors)
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    torch.testing.assert_close(norms, norms[:1].expand_as(norms))
    assert (norms[0].diff(dim=0) <= 1e-5).all()


@pytest.mark.parametrize("rank", [1, 3, 5, 7])
def test_a_filter_does_not_depend_on_its_layer(rank):
    weight = random_weight(70, 12, 3, 3, dtype=torch.float64)
    together = cp_filters(weight, rank)
    for chosen in ([3], [69, 0, 41]):
        alone = cp_filters(weight[chosen], rank)
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a, b[..., chosen], rtol=1e-4, atol=1e-5)


def test_chunks_do_not_change_the_result(monkeypatch):
    weight = random_weight(40, 12, 3, 3, dtype=torch.float64)
    whole = reconstruct(cp_filters(weight, 3))
    monkeypatch.setattr("norton.decomposition.cp_als._ELEMENTS_PER_OPERATION", 300)
    torch.testing.assert_close(reconstruct(cp_filters(weight, 3)), whole, rtol=1e-4, atol=1e-5)


def test_permuting_filters_permutes_factors():
    weight = random_weight(30, 12, 3, 3, dtype=torch.float64)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    for a, b in zip(cp_filters(weight[order], 3), cp_filters(weight, 3), strict=True):
        torch.testing.assert_close(a, b[..., order], rtol=1e-4, atol=1e-5)


def test_same_seed_same_factors_and_no_global_state():
    weight = random_weight(12, 16, 3, 3)
    state = torch.random.get_rng_state()
    first = cp_filters(weight, 4, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(5)
    assert all(torch.equal(a, b) for a, b in zip(first, cp_filters(weight, 4, seed=1), strict=True))
    other = cp_filters(weight, 4, seed=2)
    assert not torch.equal(first.head, other.head)


def test_leaves_the_weight_alone():
    weight = random_weight(4, 8, 3, 3).requires_grad_()
    before = weight.detach().clone()
    factors = cp_filters(weight, 2)
    assert torch.equal(weight.detach(), before)
    assert not factors.head.requires_grad


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_more_starts_are_never_worse_for_any_filter(rank):
    weight = random_weight(40, 16, 3, 3)
    one, three = (errors(weight, cp_filters(weight, rank, starts=starts)) for starts in (1, 3))
    assert (three <= one + 1e-6).all()
    if rank == 3:
        assert three.mean() < one.mean()


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_a_filter_of_zeros(rank):
    weight = random_weight(5, 8, 3, 3)
    weight[2] = 0
    factors = cp_filters(weight, rank)
    assert all((factor[..., 2] == 0).all() for factor in factors)
    assert all(factor.isfinite().all() for factor in factors)
    assert all((factor == 0).all() for factor in cp_filters(torch.zeros(3, 8, 3, 3), rank))


@pytest.mark.parametrize("rank", [2, 8, 9])
@pytest.mark.parametrize("scale", [1e-20, 1e-38, 1e30])
def test_tiny_and_huge_weights(rank, scale):
    weight = random_weight(5, 8, 3, 3)
    factors = cp_filters(weight * scale, rank)
    assert all(factor.isfinite().all() for factor in factors)
    unscaled = Factors(*(factor.double() for factor in factors))
    error = errors(weight.double(), Factors(unscaled.head / scale, *unscaled.spatial))
    torch.testing.assert_close(error, errors(weight, cp_filters(weight, rank)), rtol=1e-3, atol=1e-5)


def test_filters_of_one_layer_may_differ_in_size():
    weight = random_weight(3, 8, 3, 3) * torch.tensor([1e-15, 1.0, 1e15]).view(-1, 1, 1, 1)
    unscaled = random_weight(3, 8, 3, 3)
    torch.testing.assert_close(
        errors(weight, cp_filters(weight, 3)), errors(unscaled, cp_filters(unscaled, 3)), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float16, 0.01), (torch.bfloat16, 0.1), (torch.float64, 0.01)])
def test_precisions(dtype, limit):
    weight = random_weight(6, 12, 3, 3)
    factors = cp_filters(weight.to(dtype), 4)
    assert {factor.dtype for factor in factors} == {dtype}
    torch.testing.assert_close(
        errors(weight, factors).mean(), errors(weight, cp_filters(weight, 4)).mean(), rtol=limit, atol=0
    )


def test_kernels_of_one_position_and_fewer_channels_than_terms():
    assert errors(random_weight(4, 6, 1, 1), cp_filters(random_weight(4, 6, 1, 1), 1)).max() < 1e-12
    factors = cp_filters(random_weight(4, 1, 3, 3), 3)  # a 3×3 matrix has rank 3
    assert errors(random_weight(4, 1, 3, 3), factors).max() < 1e-5


def test_no_filters():
    assert cp_filters(torch.zeros(0, 4, 3, 3), 2).head.shape == (4, 2, 0)


@pytest.mark.parametrize("rank", [0, -1, 2.0, True, "3", None])
def test_a_rank_that_is_no_positive_whole_number(rank):
    with pytest.raises(InputError, match=r"conv3: rank .* is not a whole number of at least 1"):
        cp_filters(random_weight(2, 4, 3, 3), rank, name="conv3")


def test_a_rank_above_the_exact_one():
    with pytest.raises(InputError, match=r"conv3: rank 16 exceeds 15, at which a 3x5 filter is exact; use rank <= 15"):
        cp_filters(random_weight(2, 4, 3, 5), 16, name="conv3")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(value):
    weight = random_weight(2, 4, 3, 3)
    weight[1, 2, 0, 0] = value
    with pytest.raises(InputError, match="conv3"):
        cp_filters(weight, 2, name="conv3")


def test_squared_norms_are_those_of_the_dense_filters():
    factors = cp_filters(random_weight(6, 12, 3, 5), 4)
    exact = Factors(*(factor.double() for factor in factors))  # of the same values, but for rounding
    expected = reconstruct(exact).flatten(1).square().sum(1)
    torch.testing.assert_close(squared_norms(factors), expected, rtol=1e-10, atol=0)
