"""The filters that a user names layer by layer, for the criterion `index`, checked against the network."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    able = {layer: axis for axis in prunable(wiring) for layer in wiring.writers[axis]}
    modules, named = dict(net.named_modules()), {}
    for layer, text in filters.items():
        layer = str(layer)
        if layer not in able:
            why = f"cannot be pruned, {_obstacle(wiring, layer)}" if layer in modules else "is no layer of this network"
            some = ", ".join(list(able)[:4])
            raise InputError(f"filters: {layer!r} {why}; those that can are {some}{', ...' if len(able) > 4 else ''}")
        named[layer] = parse_filters(layer, text, filter_count(filters_of(modules[layer])))
        _check_units(layer, named[layer], wiring.filters(able[layer])[wiring.writers[able[layer]].index(layer)])
    return named


def _obstacle(wiring: Wiring, layer: str) -> str:
    """Why a layer's filters cannot go."""
    try:
        axis = wiring.axis_of(layer)
    except KeyError:
        return "because it has no filters"
    return "because " + wiring.frozen.get(axis, "no layer reads what it writes")


def _check_units(layer: str, named: Sequence[int], each: int) -> None:
    """Raise InputError for a part of filters that can only go together; each: how many do."""
    for channel in named:
        first = channel // each * each
        if not set(range(first, first + each)) <= set(named):
            raise InputError(
                f"filters: {layer}: filter {channel} can only go with {first}-{first + each - 1}, which are one group; "
                "name them all"
            )
