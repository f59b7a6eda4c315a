"""Checks of settings: what is refused, and what is said."""

import math

import numpy as np
import pytest

from norton.common.checks import (
    check_boolean,
    check_number,
    check_type,
    check_whole_number,
    checked_input_size,
    is_number,
    is_whole_number,
)
from norton.common.errors import InputError


@pytest.mark.parametrize("value", [True, False, 1.0, "1", None, 0])
def test_whole_numbers(value):
    check_whole_number("a", 1, 1)
    assert not is_whole_number(value, 1)
    with pytest.raises(InputError, match=f"^a is {value!r}; it must be a whole number of at least 1$"):
        check_whole_number("a", value, 1)


@pytest.mark.parametrize("value", [True, "1", None, 0, -1.5, math.inf, math.nan, [1]])
def test_numbers(value):
    check_number("a", 1, above=0.5)
    check_number("a", 10**400, least=1)
    with pytest.raises(InputError) as caught:
        check_number("a", value, above=0)
    assert str(caught.value) == f"a is {value!r}; it must be a number above 0"
    assert not is_number(value) or value <= 0


def test_bounds_belong_to_the_range_or_not():
    check_number("a", 0, least=0)
    with pytest.raises(InputError, match=r"^a is 0; it must be a number above 0$"):
        check_number("a", 0, above=0)
    with pytest.raises(InputError, match=r"^a is -1; it must be a number of at least 0$"):
        check_number("a", -1, least=0)
    with pytest.raises(InputError, match=r"^a is nan; it must be a number$"):
        check_number("a", math.nan)


@pytest.mark.parametrize("value", [0, 1, "true", None, np.True_])
def test_booleans(value):
    check_boolean("a", False)
    with pytest.raises(InputError, match=r"it must be true or false$"):
        check_boolean("a", value)


@pytest.mark.parametrize("size", [64, "abc", [3, 32], [3, 32, 0], [3, 32, True], None])
def test_input_sizes(size):
    assert checked_input_size([3, 32, 64]) == checked_input_size((3, 32, 64)) == (3, 32, 64)
    with pytest.raises(InputError, match=r"input_size is .*; give \(channels, height, width\)"):
        checked_input_size(size)


def test_types():
    check_type("options", {}, dict)
    with pytest.raises(InputError, match="options is 3; it must be a dict"):
        check_type("options", 3, dict)
