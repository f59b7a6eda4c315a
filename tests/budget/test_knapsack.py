"""One option per layer within a budget, against every combination there is."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from norton.budget import knapsack
from norton.budget.knapsack import cheapest, choose, fill

pytestmark = pytest.mark.quick


@st.composite
def tables(draw, layers=4, options=4):
    """Costs and errors of a few options for each of a few layers, with ties and dominated options."""
    option = st.tuples(st.integers(0, 30), st.integers(0, 12))
    drawn = draw(st.lists(st.lists(option, min_size=1, max_size=options), min_size=1, max_size=layers))
    return [[cost for cost, _ in own] for own in drawn], [[error / 4 for _, error in own] for own in drawn]


def total(table, chosen):
    return sum(row[place] for row, place in zip(table, chosen, strict=True))


def literal(costs, errors, budget):
    """The least error of all combinations within the budget."""
    every = itertools.product(*(range(len(own)) for own in costs))
    return min(total(errors, chosen) for chosen in every if total(costs, chosen) <= budget)


@settings(max_examples=150, deadline=None)
@given(tables(), st.data())
def test_no_combination_is_better(table, data):
    costs, errors = table
    most = sum(map(max, costs))
    budget = data.draw(st.integers(cheapest(costs), max(most, cheapest(costs))))
    chosen = choose(costs, errors, budget)
    assert total(costs, chosen) <= budget
    assert total(errors, chosen) == literal(costs, errors, budget)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 30))
def test_few_states_keep_the_promise(seed, states, layers):
    """Within the budget, no worse than any uniform choice, and than the best of a budget smaller by layers/states."""
    rng = np.random.default_rng(seed)
    costs = [np.cumsum(rng.integers(1, 50, 5)) for _ in range(layers)]
    errors = [np.sort(rng.random(5))[::-1] for _ in range(layers)]
    budget = int(rng.integers(cheapest(costs), sum(own[-1] for own in costs) + 1))
    uniform = [[place] * layers for place in range(5) if total(costs, [place] * layers) <= budget]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knapsack, "STATES", 4096)
        best = choose(costs, errors, budget)
        smaller = int(budget * (1 - layers / states))
        reference = choose(costs, errors, smaller) if cheapest(costs) <= smaller else None
        patch.setattr(knapsack, "STATES", states)
        found = choose(costs, errors, budget, uniform)
    assert total(costs, found) <= budget
    assert all(total(errors, found) <= total(errors, one) + 1e-9 for one in uniform)
    assert total(errors, found) >= total(errors, best) - 1e-9
    assert reference is None or total(errors, found) <= total(errors, reference) + 1e-9


@settings(max_examples=100, deadline=None)
@given(tables(), st.data())
def test_filling_up_changes_two_layers(table, data):
    costs, errors = table
    chosen = [data.draw(st.integers(0, len(own) - 1)) for own in costs]
    least = data.draw(st.integers(0, 60))
    budget = data.draw(st.integers(least, 90))
    every = itertools.product(*(range(len(own)) for own in costs))
    near = [one for one in every if sum(a != b for a, b in zip(one, chosen, strict=True)) <= 2]
    inside = [total(errors, one) for one in near if least <= total(costs, one) <= budget]
    found = fill([np.array(own) for own in costs], [np.array(own) for own in errors], chosen, least, budget)
    assert (found is None) == (not inside)
    if inside:
        assert tuple(found) in near and least <= total(costs, found) <= budget
        assert total(errors, found) == min(inside)


def test_more_budget_is_never_worse():
    rng = np.random.default_rng(1)
    costs = [np.arange(1, 9) * int(rng.integers(5, 99)) for _ in range(6)]
    errors = [np.sort(rng.random(8))[::-1] for _ in range(6)]
    budgets = range(cheapest(costs), sum(own[-1] for own in costs) + 1, 7)
    found = [total(errors, choose(costs, errors, budget)) for budget in budgets]
    assert found == sorted(found, reverse=True) and found[0] > found[-1]


def test_a_start_that_is_better_is_returned():
    """Where rounding or thinning lost the best, the start is what counts."""
    costs, errors = [[1, 5, 9]] * 3, [[1.0, 0.9, 0.0]] * 3
    assert total(errors, choose(costs, errors, 27, [[2, 2, 2]])) == 0.0


def test_a_budget_below_the_least():
    with pytest.raises(ValueError, match="the cheapest options cost 5, more than 4"):
        choose([[2, 9], [3]], [[1, 0], [0]], 4)


def test_a_hundred_layers_take_no_time():
    rng = np.random.default_rng(0)
    costs = [np.arange(1, 11) * int(rng.integers(10**5, 10**6)) for _ in range(100)]
    errors = [np.append(np.sort(rng.random(9) * 2.0 ** -np.arange(9))[::-1], 0) for _ in range(100)]
    budget = int(0.4 * sum(own[-1] for own in costs))
    start = time.process_time()
    chosen = choose(costs, errors, budget)
    assert time.process_time() - start < 5  # 0.1 s when nothing else runs
    assert 0.99 * budget <= total(costs, chosen) <= budget
