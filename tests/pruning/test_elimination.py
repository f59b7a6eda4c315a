import math

import numpy as np
import pytest
import torch

from norton.common.errors import InputError
from norton.pruning.elimination import removal_order

pytestmark = pytest.mark.quick


def literal_order(distances, count):
    """Section "Selection" of the paper, word for word, O(n³)."""
    left, order = list(range(len(distances))), []
    for _ in range(count):
        if len(left) == 1:
            return [*order, left[0]]
        _, i, j = min((distances[i, j], i, j) for place, i in enumerate(left) for j in left[place + 1 :])

        def others(member, pair=(i, j)):
            return math.fsum(distances[member, k] for k in left if k not in pair)

        order.append(i if others(i) <= others(j) else j)
        left.remove(order[-1])
    return order


def symmetric(matrix):
    upper = np.triu(matrix, 1)
    return upper + upper.T


@pytest.mark.parametrize("filters", [1, 2, 3, 7, 24])
@pytest.mark.parametrize("seed", range(5))
def test_order_is_the_literal_one(filters, seed):
    distances = symmetric(np.random.default_rng(seed).random((filters, filters)))
    assert removal_order(distances).tolist() == literal_order(distances, filters)


@pytest.mark.parametrize("seed", range(10))
def test_order_is_the_literal_one_where_distances_tie(seed):
    # Multiples of 0.1 tie in exact arithmetic, and not after rounding in one order or another.
    distances = symmetric(np.random.default_rng(seed).integers(0, 4, (20, 20)) * 0.1)
    assert removal_order(distances).tolist() == literal_order(distances, 20)


def test_order_is_the_literal_one_around_a_hub():
    # One filter is the nearest of all others, then the next: every removal makes all remembered neighbours stale.
    radius = np.random.default_rng(0).random(25)
    distances = symmetric(radius + radius[:, None])
    assert removal_order(distances).tolist() == literal_order(distances, 25)


def test_equal_distances_remove_the_lower_index():
    assert removal_order(symmetric(np.ones((5, 5)))).tolist() == [0, 1, 2, 3, 4]


def test_first_of_tied_pairs_goes_first():
    # Pairs (0, 3) and (1, 2) are equally close; by the sums 3 goes before 0, and 2 before 1.
    distances = symmetric(np.array([[0, 6, 5, 1], [0, 0, 1, 4], [0, 0, 0, 3], [0, 0, 0, 0.0]]))
    assert removal_order(distances, 2).tolist() == literal_order(distances, 2) == [3, 2]


def test_of_the_closest_pair_the_one_nearer_to_the_others_goes():
    points = np.array([0.0, 1.0, 10.0, 30.0])
    assert removal_order(abs(points - points[:, None]))[0] == 1


def test_count_is_a_prefix_and_the_full_order_a_permutation():
    distances = symmetric(np.random.default_rng(1).random((40, 40)))
    full = removal_order(distances)
    assert sorted(full) == list(range(40))
    assert all(removal_order(distances, count).tolist() == full[:count].tolist() for count in range(41))


def test_input_is_untouched_and_tensors_are_taken():
    distances = torch.from_numpy(symmetric(np.random.default_rng(2).random((9, 9))))
    before = distances.clone()
    assert removal_order(distances).tolist() == removal_order(before.numpy()).tolist()
    assert torch.equal(distances, before)


@pytest.mark.parametrize("distances", [np.zeros((2, 3)), np.zeros(4), np.full((2, 2), np.nan)])
def test_bad_matrix(distances):
    with pytest.raises(InputError, match="distances"):
        removal_order(distances)


@pytest.mark.parametrize("count", [-1, 4])
def test_bad_count(count):
    with pytest.raises(InputError, match=f"remove {count} of 3"):
        removal_order(np.zeros((3, 3)), count)
