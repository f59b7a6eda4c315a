"""The filters that a user names layer by layer, for the criterion `index`, checked against the network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from norton.common.errors import InputError
from norton.graph.wiring import Wiring
from norton.pruning.allocation import prunable
from norton.pruning.criteria.index import parse_filters
from norton.pruning.criteria.kinds import filter_count
from norton.pruning.options import CriterionSetting
from norton.pruning.scoring import filters_of


def named_filters(
    net: nn.Module, wiring: Wiring, criterion: CriterionSetting, filters: Mapping | None, rates: Any
) -> dict[str, tuple[int, ...]]:
    """Layer → the filters that the criterion `index` removes.

    Raises InputError for a layer that is unknown or cannot be pruned, filters that `parse_filters` refuses, and where
    neither rates nor filters say what goes.
    """
    if criterion != "index":
        if filters:
            raise InputError("filters= names what the criterion index removes; give criterion=index, or leave it out")
        if rates is None:
            raise InputError("compress_rate: no rates given; write e.g. [0.6]*6+[0.8]*7")
        return {}
    if not filters:
        raise InputError("criterion index removes the filters you name: give filters={LAYER: '105, 8, 9, 11-13'}")
    able = dict.fromkeys(layer for axis in prunable(wiring) for layer in wiring.writers[axis])
    modules, named = dict(net.named_modules()), {}
    for layer, text in filters.items():
        layer = str(layer)
        if layer not in able:
            why = f"cannot be pruned, {_obstacle(wiring, layer)}" if layer in modules else "is no layer of this network"
            some = ", ".join(list(able)[:4])
            raise InputError(f"filters: {layer!r} {why}; those that can are {some}{', ...' if len(able) > 4 else ''}")
        named[layer] = parse_filters(layer, text, filter_count(filters_of(modules[layer])))
        _check_units(wiring, layer, named[layer])
    return named


def _obstacle(wiring: Wiring, layer: str) -> str:
    """Why a layer's filters cannot go."""
    try:
        axis = wiring.axis_of(layer)
    except KeyError:
        return "because it has no filters"
    return "because " + wiring.frozen.get(axis, "no layer reads what it writes")


def _check_units(wiring: Wiring, layer: str, named: Sequence[int]) -> None:
    """Raise InputError for a part of filters that can only go together, and for filters that have to stay."""
    filters = wiring.written(layer)
    axes, units = wiring.axis_at(filters), wiring.unit_at(filters)
    for channel in named:
        if (reason := wiring.frozen.get(int(axes[channel]))) is not None:
            raise InputError(f"filters: {layer}: filter {channel} cannot go, because {reason}")
        together = np.flatnonzero((axes == axes[channel]) & (units == units[channel])).tolist()
        if not set(together) <= set(named):
            raise InputError(
                f"filters: {layer}: filter {channel} can only go with {_short(together)}, which are one group; "
                "name them all"
            )


def _short(numbers: Sequence[int]) -> str:
    """Numbers in order, those that follow each other as one: `3-5, 8`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
