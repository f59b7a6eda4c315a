"""What a network costs in MACs or parameters, and with its layers at other ranks."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from norton.common.checks import is_number
from norton.common.errors import InputError
from norton.decomposition import DECOMPOSITIONS
from norton.decomposition.ranks import Rank, layer_rules, resolve_rank
from norton.graph.copies import copied
from norton.graph.inputs import Example
from norton.graph.plan import OPERATIONS
from norton.measure.counting import complexity, inputs_for

QUANTITIES = {"macs": "MACs", "params": "parameters"}  # that a budget may be of


def asked_share(macs: Any, params: Any) -> tuple[str, float]:
    """What is to be kept a share of, and the share.  Raises InputError where that is not clear or not possible."""
    given = {what: share for what, share in (("macs", macs), ("params", params)) if share is not None}
    if len(given) != 1:
        said = "both macs and params are" if given else "neither macs nor params is"
        raise InputError(f"budget: {said} given; give the share to keep of one of them, e.g. macs=0.4")
    [(what, share)] = given.items()
    if not is_number(share) or not 0 < share < 1:
        raise InputError(f"budget: {what} is {share!r}; it is the share to keep, above 0 and below 1, e.g. {what}=0.4")
    return what, share


class Costs:
    """What a network costs, and with its layers at other ranks.

    size: (C, H, W) of its images, or one of what it takes; None: as the network states.  layers: those that the method
    takes, by their first name → all their names.  total, by_layer: of the network.
    """

    def __init__(self, net: nn.Module, what: str, method: str, skip: Iterable[str] | None, size: Example | None):
        self.net, self.what, self.method, self.size = net, what, method, size
        by_module: dict[nn.Module, list[str]] = {}
        for name in layer_rules(net, 1, skip, method):
            by_module.setdefault(net.get_submodule(name), []).append(name)
        self.layers = {names[0]: names for names in by_module.values()}
        if "" in self.layers:
            raise InputError("a budget is for networks of several layers; this one is a single one, so give its rank")
        self.total, self.by_layer = self.count(net)
        self._inputs = _input_shapes(net, self.layers, size)
        self._known: dict[tuple, int] = {}

    def count(self, net: nn.Module) -> tuple[int, dict[str, int]]:
        found = complexity(net, example=self.size)
        return getattr(found, self.what), {name: getattr(cost, self.what) for name, cost in found.by_layer.items()}

    def shaped(self, net: nn.Module, ranks: Mapping[str, Rank | None]) -> nn.Module:
        """A network with the shapes of its layers at these ranks; values undefined."""
        step = {alias: rank for name, rank in ranks.items() if rank is not None for alias in self.layers[name]}
        small = copied(net)
        OPERATIONS["decompose"](small, {"method": self.method, "ranks": step})
        return small

    def uniform_ranks(self, rank: int) -> dict[str, Rank]:
        return {name: resolve_rank(name, self.net.get_submodule(name), rank, self.method) for name in self.layers}

    def by_rank(self, net: nn.Module, ranks: Mapping[str, Sequence[Rank]]) -> tuple[int, dict[str, np.ndarray]]:
        """What all else costs; and layer → what it costs left dense, then at each of its ranks.

        net: the network, or one pruned from it.
        """
        total, dense = self.count(net)
        found = {}
        for name, tried in ranks.items():
            if len(self.layers[name]) == 1 and len(self._inputs[name]) == 1:
                changed = [self._alone(net.get_submodule(name), name, rank) for rank in tried]
            else:  # how often a layer counts that is shared, or called again, the total alone tells
                totals = (self.count(self.shaped(net, {name: rank}))[0] for rank in tried)
                changed = [dense[name] + cost - total for cost in totals]
            found[name] = np.array([dense[name], *changed])
        return total - sum(int(costs[0]) for costs in found.values()), found

    def _alone(self, layer: nn.Module, name: str, rank: Rank) -> int:
        [shape] = self._inputs[name]
        linear = isinstance(layer, nn.Linear)
        shape = (*shape[:-1], layer.in_features) if linear else (layer.in_channels, *shape[1:])
        key = str(layer), shape, str(rank)  # layers of the same geometry cost the same
        if key not in self._known:
            cost = complexity(DECOMPOSITIONS[self.method].shaped_like(layer, rank), shape)
            self._known[key] = getattr(cost, self.what)
        return self._known[key]

    def cheaper_ranks(self, ranks: Mapping[str, Sequence[Rank]]) -> dict[str, list[Rank]]:
        """Those of the ranks at which a layer costs less than left dense."""
        _, costs = self.by_rank(self.net, ranks)
        return {
            name: [rank for rank, cost in zip(tried, costs[name][1:], strict=True) if cost < costs[name][0]]
            for name, tried in ranks.items()
        }


def _input_shapes(net: nn.Module, names: Iterable[str], size: Example | None) -> dict[str, list[tuple[int, ...]]]:
    """Layer → the shape of what it reads of one image, for each time that it is called."""
    net = copied(net).float().cpu().eval()
    found: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}

    def note(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name].append(tuple(args[0].shape[1:]))

    for name in found:
        net.get_submodule(name).register_forward_pre_hook(partial(note, name))
    inputs_for(net, size).first(1).to("cpu", torch.float32).call(net)
    return found


def highest_uniform_rank(costs: Costs, budget: int) -> int | None:
    """The highest rank that, given for all layers, is within a budget."""
    low, high = 0, max(max(DECOMPOSITIONS[costs.method].full_rank(costs.net.get_submodule(n))) for n in costs.layers)
    while low < high:
        rank = (low + high + 1) // 2
        low, high = (
            (rank, high)
            if costs.count(costs.shaped(costs.net, costs.uniform_ranks(rank)))[0] <= budget
            else (low, rank - 1)
        )
    return low or None
