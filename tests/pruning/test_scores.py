"""Each criterion that is no distance against a literal loop."""

import itertools
import math

import numpy as np
import pytest
import torch

from norton.common.errors import InputError
from norton.decomposition.factors import Factors, reconstruct
from norton.pruning import keep_filters, scores
from norton.pruning.criteria.index import parse_filters
from norton.pruning.criteria.kinds import LayerContext


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def factors(filters=9, rank=2):
    return Factors(normal(4, rank, filters), normal(3, rank, filters, seed=1), normal(3, rank, filters, seed=2))


@pytest.mark.parametrize("filters", [normal(9, 4, 3, 3), factors()])
def test_l1(filters):
    weight = filters if isinstance(filters, torch.Tensor) else reconstruct(filters)
    expected = [sum(abs(value) for value in one.flatten().tolist()) for one in weight]
    assert scores(filters, "l1").tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("filters", [normal(9, 4, 3, 3), normal(40, 6), factors()])
def test_fpgm(filters):
    weight = (filters if isinstance(filters, torch.Tensor) else reconstruct(filters)).flatten(1).numpy()
    expected = [sum(math.dist(weight[i], weight[j]) for j in range(len(weight)) if j != i) for i in range(len(weight))]
    assert scores(filters, "fpgm").tolist() == pytest.approx(expected, rel=1e-9)


def test_fpgm_removes_what_others_can_replace_however_large():
    """A crowd of large near-duplicates goes before small filters that stand alone; by norm it would be kept."""
    crowd = 3 + 1e-3 * normal(6, 50)
    alone = normal(5, 50, seed=1)
    weight = torch.cat([alone, crowd])
    assert keep_filters(weight, 5, "fpgm").tolist() == list(range(5))
    assert keep_filters(weight, 6, "l2").tolist() == list(range(5, 11))


def test_fpgm_sees_small_differences_between_large_filters():
    weight = 1000 + normal(8, 30)
    expected = [sum(math.dist(a, b) for b in weight.tolist()) for a in weight.tolist()]
    assert scores(weight, "fpgm").tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (4, 7), (7, 4), (1, 1)])
def test_nuclear_norm(size):
    maps = normal(3, 6, *size)
    expected = [
        np.mean([np.linalg.svd(maps[n, o].numpy(), compute_uv=False).sum() for n in range(3)]) for o in range(6)
    ]
    assert scores(maps, "nuclear_norm").tolist() == pytest.approx(expected, rel=1e-7)


def test_hrank():
    maps = torch.zeros(2, 5, 6, 8, dtype=torch.float64)
    maps[:, 1] = normal(2, 6, 1).abs() @ normal(2, 1, 8).abs()  # rank 1
    maps[:, 2] = normal(2, 6, 3).abs() @ normal(2, 3, 8).abs()  # rank 3
    maps[0, 3] = normal(6, 8)
    maps[:, 4] = -normal(2, 6, 8).abs()  # nothing is left of it
    found = scores(maps, "hrank").tolist()
    rank = np.linalg.matrix_rank(maps[0, 3].clamp_min(0).numpy())
    assert found == [0, 1, 3, rank / 2, 0]


@pytest.mark.parametrize("smallest, rank", [(1e-5, 2), (1e-7, 1)])
def test_hrank_counts_singular_values_above_its_tolerance(smallest, rank):
    left, right = torch.eye(8, dtype=torch.float64)[:, :2], torch.eye(8, dtype=torch.float64)[:2]
    single = left @ torch.diag(torch.tensor([1, smallest], dtype=torch.float64)) @ right
    for scale in (1e-6, 1.0, 1e6):
        assert scores(scale * single[None, None], "hrank").tolist() == [rank]


def test_taylor():
    maps, gradients = normal(3, 4, 5, 6), normal(3, 4, 5, 6, seed=1)
    expected = [0.0] * 4
    for n, o in itertools.product(range(3), range(4)):
        change = sum(maps[n, o, i, j].item() * gradients[n, o, i, j].item() for i in range(5) for j in range(6))
        expected[o] += change**2 / 3
    assert scores((maps, gradients), "taylor").tolist() == pytest.approx(expected, rel=1e-10)


def test_bn_scale():
    scales = torch.tensor([[1.0, -3.0, 0.0], [2.0, 1.0, 0.0]])
    assert scores(scales, "bn_scale").tolist() == [1.5, 2.0, 0.0]


def test_random_goes_by_seed_and_layer_alone():
    def of(layer, seed, weight):
        return scores(LayerContext(layer, weight, seed), "random").tolist()

    one = of("a", 0, normal(50, 4))
    assert one == of("a", 0, normal(50, 9, seed=1)) and one != of("a", 1, normal(50, 4)) != of("b", 0, normal(50, 4))
    assert one != of("b", 0, normal(50, 4))
    assert min(one) >= 0 and max(one) < 1 and 0.3 < np.mean(one) < 0.7


def test_index_removes_the_named_then_the_small():
    weight = torch.tensor([[3.0], [1.0], [2.0], [4.0]])
    assert scores(LayerContext("a", weight, named=(0, 3)), "index").tolist() == [-math.inf, 1, 2, -math.inf]
    assert keep_filters(LayerContext("a", weight, named=(0, 3)), 1, "index").tolist() == [2]


@pytest.mark.parametrize("text, expected", [
    ("105, 8, 9, 11-13", (8, 9, 11, 12, 13, 105)),
    (" 3 ", (3,)),
    (7, (7,)),
    ([4, "1-2"], (1, 2, 4)),
    ("5-5", (5,)),
])  # fmt: skip
def test_filters_as_a_user_writes_them(text, expected):
    assert parse_filters("conv", text, 106) == expected


@pytest.mark.parametrize("text, message", [
    ("16", "conv: filter 16 is out of range; it has 16, 0 to 15"),
    ("3-20", "filter 20 is out of range"),
    ("3, 2-4", "filter 3 is given twice"),
    ("5, 5", "filter 5 is given twice"),
    ("9-4", "range 9-4 runs backwards; write 4-9"),
    ("0-15", "all 16 filters are named"),
    ("", "cannot read ''"),
    ("1;2", "cannot read '1;2'"),
    ("-1", "cannot read '-1'"),
    ("1.5", "cannot read '1.5'"),
    ([], "no filters"),
])  # fmt: skip
def test_filters_that_cannot_be(text, message):
    with pytest.raises(InputError, match=message):
        parse_filters("conv", text, 16)


def test_a_criterion_that_gives_nan_is_named():
    maps = torch.full((1, 2, 2, 2), 1e200, dtype=torch.float64)
    with pytest.raises(InputError, match=r"criterion 'taylor' scores filter 0 inf"):
        scores((maps, maps), "taylor")
