"""Whole numbers that modules hold, such as a width or a number of heads, which tell whose they are where they are used.

A recorded `split(self.width)` or `view(-1, self.num_heads, 64)` shows in this way which number has to follow when the
channels that it counts are cut.
"""

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from norton.graph.layers import WRITING_LAYERS

# Of torch's own layers only these are used by the code around them; slicers change them.
_OF_TORCH = ("groups", "num_groups", "normalized_shape", "unflattened_size")


class OwnNumber(int):
    """A number that a module holds, or a multiple or part of it; `names`: of one or more that it is made of."""

    names: tuple[str, ...] = ()

    def __new__(cls, value: int, names: tuple[str, ...] = ()) -> "OwnNumber":
        number = super().__new__(cls, value)
        number.names = names
        return number

    def __getnewargs__(self) -> tuple[int, tuple[str, ...]]:  # type: ignore[override]  # for copies
        return int(self), self.names

    def __mul__(self, other: Any) -> Any:
        if type(other) not in (int, OwnNumber):
            return NotImplemented
        return OwnNumber(int(self) * int(other), self.names + getattr(other, "names", ()))

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        if type(other) not in (int, OwnNumber):
            return NotImplemented
        whole = int(self) % int(other) == 0
        return OwnNumber(int(self) // other, self.names) if whole else int(self) // int(other)

    def __neg__(self) -> "OwnNumber":
        return OwnNumber(-int(self), self.names)


def mark_numbers_(net: nn.Module) -> nn.Module:
    """Let the whole numbers of a network's modules tell whose they are, in place; also those in a list or tuple."""
    for path, module in net.named_modules():
        own = not type(module).__module__.startswith("torch.nn")
        for key, value in list(vars(module).items()):
            used = not key.startswith("_") if own else key in _OF_TORCH and isinstance(module, _layers_with(key))
            marked = _marked(f"{path}.{key}".lstrip("."), value) if used else value
            if marked is not value:
                vars(module)[key] = marked  # whatever the module does where attributes are set
    return net


def _layers_with(key: str) -> tuple[type[nn.Module], ...]:
    return WRITING_LAYERS if key == "groups" else (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Unflatten)


def _marked(name: str, value: Any) -> Any:
    if type(value) is int and value > 0:
        return OwnNumber(value, (name,))
    if type(value) in (list, tuple) and any(type(item) is int for item in value):
        return type(value)(_marked(f"{name}[{place}]", item) for place, item in enumerate(value))
    return value


def is_own(number: object, name: str) -> bool:
    """Whether a number is the one of that name."""
    return isinstance(number, OwnNumber) and number.names == (name,)


def change_number_(net: nn.Module, name: str, change: Callable[[int], int]) -> None:
    """Change a number of that name, in place; lists are replaced, since others may hold them."""
    path, _, key = re.sub(r"\[\d+\]$", "", name).rpartition(".")
    owner, place = net.get_submodule(path), re.search(r"\[(\d+)\]$", name)
    held = vars(owner)[key]
    if place is None:
        vars(owner)[key] = change(held)
        return
    items = list(held)
    items[int(place[1])] = change(items[int(place[1])])
    vars(owner)[key] = type(held)(items)
