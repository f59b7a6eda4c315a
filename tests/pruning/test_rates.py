import pytest
from hypothesis import given
from hypothesis import strategies as st

import norton
from norton.pruning.rates import pruned_width

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("text, rates", [
    ("[0.6]*6+[0.8]*7", [0.6] * 6 + [0.8] * 7),
    ("[0.]+[0.12]*2", [0.0, 0.12, 0.12]),
    ("[.5, 1e-1]*2 + [0]", [0.5, 0.1, 0.5, 0.1, 0.0]),
    ([0.5, 0], [0.5, 0.0]),
    ("[0.5]", [0.5]),
])  # fmt: skip
def test_parse(text, rates):
    assert norton.parse_rates(text) == rates


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1))
def test_written_rates_read_back(rates):
    assert norton.parse_rates(norton.format_rates(rates)) == rates


@pytest.mark.parametrize("rates", ["[0.6]*6+[0.8]*7", "[0.]", "[0.]+[0.12]*2+[0.4]*27"])
def test_published_spelling_is_kept(rates):
    assert norton.format_rates(norton.parse_rates(rates)) == rates


@pytest.mark.parametrize("bad, message", [
    ("", "cannot read 'the end'"),
    ("0.6", "cannot read '0.6'"),
    ("[0.6]*6+", "'the end'"),
    ("[0.6]*6[0.8]", r"expected \+"),
    ("[0.6]*x", r"expected \+"),
    ("[a]*3", r"cannot read '\[a\]"),
    ("__import__('os')", "cannot read"),
    ("[1.0]", "below 1"),
    ("[-0.1]", "at least 0"),
    ([0.1, "x"], "entry 1 is 'x'"),
    ([float("nan")], "nan"),
    ([True], "not a number"),
])  # fmt: skip
def test_bad_rates(bad, message):
    with pytest.raises(norton.InputError, match=message):
        norton.parse_rates(bad)


def test_width_is_truncated_in_double_precision():
    assert [pruned_width(64, 0.6), pruned_width(100, 0.9), pruned_width(10, 0.8)] == [25, 9, 1]
