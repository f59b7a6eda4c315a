"""The published networks, dense or at any rank and rates."""

from collections.abc import Mapping, Sequence

from torch import nn

from norton.decomposition import layer_ranks
from norton.errors import InputError
from norton.models.base import NETWORKS, Network
from norton.plan import apply_plan_
from norton.registry import import_submodules

import_submodules(__name__)

__all__ = ["NETWORKS", "Network", "build", "dense_network"]


def build(
    arch: str,
    rank: int | Mapping[str, int | None] = 0,
    compress_rate: str | Sequence[float] | None = None,
    num_classes: int | None = None,
) -> nn.Module:
    """A freshly initialised network in the published layout.

    rank: 0 for dense, else as in `norton.decompose`.  compress_rate: as in `norton.prune`; none removes nothing.
    Raises InputError for an unknown network, and for ranks and rates that do not fit it.
    """
    net = dense_network(arch, num_classes)
    plan = []
    if rank != 0:
        plan.append({"op": "decompose", "method": "cp", "ranks": layer_ranks(net, rank)})
    if compress_rate is not None:
        widths = net.target_widths(net.check_rates(compress_rate))
        if keep := _first_channels(net, widths):
            plan.append({"op": "prune", "keep": keep})
    if not plan:
        return net
    apply_plan_(net, plan)
    for layer in net.modules():  # what surgery left was drawn for the dense widths
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return net


def dense_network(arch: str, num_classes: int | None = None) -> nn.Module:
    """The dense network, which remembers what it takes to build it again."""
    network = NETWORKS[arch]
    num_classes = network.default_classes if num_classes is None else num_classes
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(f"{arch}: num_classes is {num_classes!r}; it must be a whole number of at least 1")
    net = network(num_classes=num_classes)
    net.arch, net.num_classes = arch, num_classes
    return net


def _first_channels(net: nn.Module, widths: Mapping[str, int]) -> dict[str, list[int]]:
    """Weights are still random, so any channels will do."""
    wiring = net.wiring()
    axes = {wiring.axis_of(layer): width for layer, width in widths.items()}
    return {wiring.name(axis): list(range(width)) for axis, width in axes.items() if width < wiring.width(axis)}
