"""What a network, and its checkpoint, remember of the data that it is for.

A network has them as attributes, which copies keep: `normalisation`, mean and standard deviation of each channel;
`classes`, their names in the order of the outputs; `data_settings`, by which a command finds the data again, as
`data=` and `data.NAME=` have them.  A folder's path is among the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

TYPES = {"normalisation": list | None, "classes": list | None, "data": dict | None}  # of what a file holds


def about_data(net: nn.Module) -> dict[str, Any]:
    """What a network remembers, as a file holds it: in plain types, which alone are read again."""
    normalisation, classes = getattr(net, "normalisation", None), classes_of(net)
    settings = getattr(net, "data_settings", None)
    return {
        "normalisation": None if normalisation is None else [[float(n) for n in part] for part in normalisation],
        "classes": None if classes is None else [str(name) for name in classes],
        "data": _plain(settings) if isinstance(settings, Mapping) else None,
    }


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return type(value) in (str, int, float, bool)


def remember_(net: nn.Module, content: Mapping[str, Any]) -> None:
    """Let a network remember what a file holds, in place."""
    if content["normalisation"] is not None:
        net.normalisation = tuple(tuple(part) for part in content["normalisation"])
    if content["classes"] is not None:
        net.classes = tuple(content["classes"])
    if content["data"] is not None:
        net.data_settings = dict(content["data"])


def is_normalisation(value: Any) -> bool:
    """Whether a file's value is none, or mean and standard deviation in as many numbers each."""
    if value is None:
        return True
    parts = [part for part in value if isinstance(part, list | tuple) and all(type(n) in (int, float) for n in part)]
    return len(value) == len(parts) == 2 and len(parts[0]) == len(parts[1])


def forget_classes_(net: nn.Module) -> None:
    """Let a network with a fresh classifier forget the old one's data in place; images are normalised as before."""
    net.classes = net.data_settings = None
    net.fresh_head = True  # for who opened it


def classes_of(net: nn.Module) -> tuple[str, ...] | None:
    """The names of a network's classes; None where it says none, or means something else by that name."""
    classes = getattr(net, "classes", None)
    if not isinstance(classes, Sequence) or isinstance(classes, str) or not all(isinstance(n, str) for n in classes):
        return None
    return tuple(classes) if len(classes) == getattr(net, "num_classes", len(classes)) else None


def are_named(classes: Sequence[str]) -> bool:
    """Whether classes have names, rather than their numbers alone."""
    return list(classes) != [str(number) for number in range(len(classes))]


def difference(own: Sequence[str], others: Sequence[str]) -> str:
    """How other classes differ from a network's own, in words, which follow on what has them; empty where they do not.

    Classes without names differ from none.
    """
    if tuple(own) == tuple(others) or not (are_named(own) and are_named(others)):
        return ""
    missing = [name for name in own if name not in others]
    more = [name for name in others if name not in own]
    if not missing and not more:
        place = next(number for number, pair in enumerate(zip(own, others, strict=False)) if len(set(pair)) > 1)
        return f"have the same classes in another order: number {place} is {others[place]}, not {own[place]}"
    if not more:
        return f"lack its {some(missing)}"
    return f"have {some(more)} {f'in the place of {some(missing)}' if missing else 'besides'}"


def other_normalisation(net: nn.Module, found: Sequence[Sequence[float]] | None) -> str:
    """How images are normalised otherwise than a network remembers, in words; empty where it is the same or unknown."""
    own = getattr(net, "normalisation", None)
    if own is None or found is None:
        return ""
    if np.shape(own) == np.shape(found) and np.allclose(own, found, rtol=0, atol=0.002):  # as of other samples
        return ""
    return f"normalised by {_numbers(found)}, where the network remembers {_numbers(own)}"


def _numbers(normalisation: Sequence[Sequence[float]]) -> str:
    mean, std = (", ".join(f"{number:.4g}" for number in part) for part in normalisation)
    return f"mean ({mean}) and std ({std})"


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:5]) + f" and {len(names) - 5} more" * (len(names) > 5)
