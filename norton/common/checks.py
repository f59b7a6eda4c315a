"""Checks of settings: a boolean, a whole number or a number in a range, which True and False are not; sizes; types."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from norton.common.errors import InputError


def is_whole_number(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Whether a value is a whole number, of at least `least` where that is given."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf


def check_boolean(name: str, value: Any) -> None:
    """Raise InputError for a setting that is neither true nor false."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be true or false")


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Raise InputError for a setting that is no whole number of at least `least`."""
    if not is_whole_number(value, least):
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def check_number(name: str, value: Any, *, above: float | None = None, least: float | None = None) -> None:
    """Raise InputError for a setting that is no finite number, or not above one bound or at least the other."""
    if is_number(value) and (above is None or value > above) and (least is None or value >= least):
        return
    allowed = "" if above is None and least is None else f" above {above}" if least is None else f" of at least {least}"
    raise InputError(f"{name} is {value!r}; it must be a number{allowed}")


def check_type(name: str, value: Any, kinds: type | tuple[type, ...]) -> None:
    """Raise InputError for an argument that is none of these types."""
    if not isinstance(value, kinds):
        known = kinds if isinstance(kinds, tuple) else (kinds,)
        allowed = " or ".join("None" if kind is type(None) else f"a {kind.__name__}" for kind in known)
        raise InputError(f"{name} is {value!r}; it must be {allowed}")


def checked_input_size(size: Any) -> tuple[int, int, int]:
    """The size (channels, height, width) of an image, as a tuple.  Raises InputError for what is none."""
    found = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size,)
    if len(found) != 3 or not all(is_whole_number(n, 1) for n in found):
        raise InputError(f"input_size is {size!r}; give (channels, height, width), e.g. [3,224,224]")
    return found
