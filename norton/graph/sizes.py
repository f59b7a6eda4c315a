"""Sizes of tensors as numbers that remember what they come of, so that what is computed of them is recorded too."""

import math
import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from torch import fx

from norton.graph.lines import runs_in_einops
from norton.graph.nodes import DECIDED


@contextmanager
def einops_without_memory() -> Iterator[None]:
    """Let einops, where it is in use, compute sizes anew: else it gives numbers of an earlier call for equal ones."""
    module = sys.modules.get("einops.einops")
    if module is None:
        yield
        return
    remembering = module._reconstruct_from_shape
    module._reconstruct_from_shape = module._reconstruct_from_shape_uncached  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module._reconstruct_from_shape = remembering  # type: ignore[attr-defined]


class Recorded:
    """A number whose node is made when something takes it."""

    recorder: Any  # what makes nodes of numbers, see `norton.graph.execution`
    make: Callable[[], fx.Node]

    @cached_property
    def node(self) -> fx.Node:
        return self.make()


class Number(Recorded, int):
    """A whole number that comes of a tensor's size."""


class Real(Recorded, float):
    """A number that is computed of such."""


def _computing(function: Callable, reverse: bool) -> Callable:
    def compute(self: Any, *others: Any) -> Any:
        numbers = [*others, self] if reverse else [self, *others]
        values = [plain(number) for number in numbers]
        if any(type(value) not in (int, float) for value in values):
            return NotImplemented
        return self.recorder.number(function(*values), "call_function", function, numbers, {})

    return compute


def _deciding(function: Callable) -> Callable:
    """A comparison, on which the network's code may decide."""

    def decide(self: Any, *others: Any) -> Any:
        for number in (self, *others):
            if isinstance(number, Recorded) and not runs_in_einops():
                number.node.meta[DECIDED] = True
        return function(self, *others)

    return decide


def plain(number: Any) -> Any:
    """A number without what it remembers, as a size or as one that a module holds; anything else as it is."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return number
    return int(number) if isinstance(number, int) else float(number)


def _divmod(self: Any, other: Any) -> Any:
    return self // other, self % other


# What gives a number that remembers, too.  `int()` and `float()` cannot.
_OF_ONE: dict[str, Callable] = {
    "neg": operator.neg,
    "pos": operator.pos,
    "abs": abs,
    "invert": operator.invert,
    "round": round,
}
_OF_ONE |= {"trunc": math.trunc, "floor": math.floor, "ceil": math.ceil}
_OF_TWO: dict[str, Callable] = {
    name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow")
}
_OF_TWO |= {name: getattr(operator, name) for name in ("lshift", "rshift")}
_OF_TWO |= {"and": operator.and_, "or": operator.or_, "xor": operator.xor}

for _kind in (Number, Real):
    for _name, _function in _OF_TWO.items():
        if hasattr(_kind.__mro__[2], f"__{_name}__"):
            setattr(_kind, f"__{_name}__", _computing(_function, False))
            setattr(_kind, f"__r{_name}__", _computing(_function, True))
    for _name, _function in _OF_ONE.items():
        if hasattr(_kind.__mro__[2], f"__{_name}__"):
            setattr(_kind, f"__{_name}__", _computing(_function, False))
    _kind.__divmod__ = _divmod  # type: ignore[assignment]
    _kind.__rdivmod__ = lambda self, other: (other // self, other % self)  # type: ignore[assignment]
    for _operation in ("eq", "ne", "lt", "le", "gt", "ge", "bool"):
        setattr(_kind, f"__{_operation}__", _deciding(getattr(_kind.__mro__[2], f"__{_operation}__")))
    _kind.__hash__ = _kind.__mro__[2].__hash__  # type: ignore[assignment]
