"""Every normalisation against its formula written out, and on layers where it could divide by zero."""

import math
import statistics

import numpy as np
import pytest

from norton.common.errors import InputError
from norton.pruning.normalisation import NORMALISATIONS, normalised

pytestmark = pytest.mark.quick

SCORES = [0.5, 3.0, 0.0, 2.0, 3.0, 1.25]
LITERAL = {
    "none": lambda x, all_: x,
    "standard": lambda x, all_: (x - statistics.fmean(all_)) / statistics.pstdev(all_),
    "sum_of_squares": lambda x, all_: x / math.sqrt(sum(y * y for y in all_)),
    "linear": lambda x, all_: (x - min(all_)) / (max(all_) - min(all_)),
    "softmax": lambda x, all_: math.exp(x) / sum(math.exp(y) for y in all_),
    "lamp": lambda x, all_: x * x / sum(y * y for y in all_ if y >= x),
}


@pytest.mark.parametrize("name", LITERAL)
def test_formula(name):
    assert normalised(SCORES, name).tolist() == pytest.approx([LITERAL[name](x, SCORES) for x in SCORES])


def test_rank_is_the_place_in_the_order():
    assert normalised(SCORES, "rank").tolist() == pytest.approx([0.2, 0.8, 0, 0.6, 1, 0.4])


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_order_is_kept(name):
    found = normalised(SCORES, name)
    assert np.argsort(found, kind="stable").tolist() == np.argsort(SCORES, kind="stable").tolist()


@pytest.mark.parametrize("name", list(NORMALISATIONS))
@pytest.mark.parametrize("scores", [[0.0], [5.0], [0.0] * 4, [2.5] * 7, [0.1] * 3, [0, 0, 1e-300], [1e200, 1e-200, 0]])
def test_degenerate_layers_give_numbers(name, scores):
    with np.errstate(all="raise", under="ignore"):
        found = normalised(scores, name)
    assert found.shape == (len(scores),) and np.isfinite(found).all()
    if len(set(scores)) == 1 and name != "rank":
        assert len(set(found.tolist())) == 1


@pytest.mark.parametrize("name", sorted(set(NORMALISATIONS) - {"none", "softmax"}))
def test_scale_of_a_layer_does_not_matter(name):
    assert normalised(1e6 * np.array(SCORES), name).tolist() == pytest.approx(normalised(SCORES, name).tolist())


def test_standard_and_linear_do_not_depend_on_an_offset():
    for name in ("standard", "linear"):
        assert normalised(np.array(SCORES) - 7, name).tolist() == pytest.approx(normalised(SCORES, name).tolist())


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_what_has_to_go_stays_lowest_and_does_not_count(name):
    found = normalised([-np.inf, *SCORES, -np.inf], name)
    assert found[[0, -1]].tolist() == [-np.inf] * 2
    assert found[1:-1].tolist() == normalised(SCORES, name).tolist()
    assert (normalised([-np.inf], name) == -np.inf).all()


def test_the_best_filter_of_a_layer_has_lamp_one():
    assert normalised([3.0, 1.0, 2.0], "lamp").max() == 1


def test_bad_input():
    with pytest.raises(InputError, match=r"lamp: a score is -1; it needs a criterion of at least 0"):
        normalised([-1.0, 2.0], "lamp")
    with pytest.raises(InputError, match=r"unknown normalisation 'nix'; choose one of lamp, linear"):
        normalised([1.0], "nix")
