"""The alternating solver for CP factors in a metric, against least squares and generic descent."""

import itertools

import pytest
import torch
from helpers.metrics import errors, noise, some_metric

from norton.calibration import Metric
from norton.decomposition import cp_filters
from norton.decomposition.cp_outputs import refit
from norton.decomposition.factors import Factors, balanced, reconstruct

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_heads_are_those_of_least_squares(rank):
    target = noise(5, 4, 3, 3)
    metric, start = some_metric(36), cp_filters(target, rank)
    found = errors(refit(start, target, metric, sweeps=0, tolerance=1e-12), target, metric)
    root = torch.linalg.cholesky(metric.blocks[0]).T
    for o in range(len(target)):
        kernels = [torch.outer(start.body[:, r, o], start.tail[:, r, o]).flatten()[:, None] for r in range(rank)]
        design = torch.cat([torch.kron(torch.eye(4, dtype=torch.float64), kernel) for kernel in kernels], dim=1)
        best = torch.linalg.lstsq(root @ design, (root @ target[o].flatten())[:, None]).solution
        least = (root @ (target[o].flatten() - (design @ best)[:, 0])).square().sum()
        torch.testing.assert_close(found[o], least, rtol=1e-4, atol=0)


def test_many_sweeps_end_where_a_generic_optimiser_ends():
    target, metric = noise(4, 3, 3, 3), some_metric(27)
    found = refit(cp_filters(target, 1), target, metric, sweeps=300, tolerance=1e-12)
    least = by_descent(found, target, metric)
    torch.testing.assert_close(errors(found, target, metric), errors(least, target, metric), rtol=1e-4, atol=0)


def test_a_sweep_leaves_an_optimum_where_it_is():
    target, metric = noise(4, 3, 3, 3), some_metric(27)  # at rank 2 alternation alone takes long to get there
    least = by_descent(cp_filters(target, 2), target, metric)
    again = errors(refit(least, target, metric, sweeps=3), target, metric)
    torch.testing.assert_close(again.sum(), errors(least, target, metric).sum(), rtol=1e-4, atol=0)


def by_descent(start: Factors, target: torch.Tensor, metric: Metric) -> Factors:
    free = [factor.clone().requires_grad_() for factor in start]
    options = {"max_iter": 3000, "tolerance_grad": 1e-11, "tolerance_change": 1e-14}
    optimiser = torch.optim.LBFGS(free, line_search_fn="strong_wolfe", **options)

    def closure():
        optimiser.zero_grad()
        loss = errors(Factors(*free), target, metric).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return Factors(*(factor.detach() for factor in free))


def test_each_sweep_lowers_the_error_and_the_metric_matters():
    target = noise(6, 5, 3, 3)
    metric, start = some_metric(45), cp_filters(target, 2)
    found = [errors(start, target, metric)]
    found += [errors(refit(start, target, metric, sweeps=sweeps), target, metric) for sweeps in range(4)]
    for earlier, later in itertools.pairwise(found):
        assert (later <= earlier * (1 + 1e-9)).all()
    assert found[1].sum() < 0.9 * found[0].sum()
    assert found[3].sum() < 0.97 * found[1].sum()


def test_no_filter_gets_worse_than_its_start():
    target = noise(3, 4, 3, 3)
    best = refit(cp_filters(target, 2), target, some_metric(36), sweeps=50)
    again = refit(best, target, some_metric(36), sweeps=1)
    assert (errors(again, target, some_metric(36)) <= errors(best, target, some_metric(36)) * (1 + 1e-9)).all()
    exact = cp_filters(target, 9)
    torch.testing.assert_close(reconstruct(refit(exact, target, some_metric(36))), target)


def test_in_the_unit_metric_the_weight_fit_stays():
    target = noise(4, 6, 3, 3)
    start = cp_filters(target, 2, tolerance=1e-9, iterations=3000)
    unit = Metric([torch.eye(54, dtype=torch.float64)])
    found = errors(refit(start, target, unit, sweeps=3), target, unit)
    torch.testing.assert_close(found, errors(start, target, unit), rtol=1e-3, atol=0)


def test_blocks_of_a_metric_are_a_matrix_with_zeros_beside_them():
    target, whole = noise(4, 5, 3, 3), some_metric(45)
    blocks = Metric([whole.blocks[0][:27, :27], whole.blocks[0][27:, 27:]])
    dense = Metric([torch.block_diag(*blocks.blocks)])
    rows = target.flatten(1)
    for one, other in ((blocks.times, dense.times), (blocks.solve, dense.solve), (blocks.squares, dense.squares)):
        torch.testing.assert_close(one(rows), other(rows))
    start = cp_filters(target, 2)
    pair = [errors(refit(start, target, metric), target, dense).sum() for metric in (blocks, dense)]
    torch.testing.assert_close(*pair, rtol=1e-3, atol=0)


def test_filters_of_zeros_and_inputs_of_zeros_do_no_harm():
    target = noise(3, 4, 3, 3)
    target[1] = 0
    x = noise(100, 36)
    x[:, 9:18] = 0  # a dead channel
    metric = Metric([x.T @ x / 100]).ridged(0.01)
    found = reconstruct(refit(cp_filters(target, 2), target, metric))
    assert found.isfinite().all()
    assert not found[1].any()
    silent = Metric([torch.zeros(36, 36, dtype=torch.float64)]).ridged(0.01)
    assert reconstruct(refit(cp_filters(target, 2), target, silent)).isfinite().all()


def test_balanced_factors_are_the_same_filters():
    factors = Factors(noise(4, 2, 3), noise(3, 2, 3, seed=1), noise(3, 2, 3, seed=2))
    found = balanced(factors)
    torch.testing.assert_close(reconstruct(found), reconstruct(factors))
    norms = [factor.norm(dim=0) for factor in found]
    torch.testing.assert_close(norms[0], norms[1])
    assert (norms[0][0] >= norms[0][1]).all()
