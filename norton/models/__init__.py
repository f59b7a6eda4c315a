"""Networks: the published ones, and any other by the path of its constructor, dense or at any rank and rates.

A published network is one file that registers a class (`base` is the contract): its layers, its channel axes and which
layer each published rate prunes.  `foreign` makes networks from elsewhere.  `build` gives one with random weights;
`dense_network` is what checkpoints replay a plan on.

Imports `common`, `graph`, `decomposition` and `pruning`.  Files are read in `checkpoints`, networks trained in
`training`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from norton.common.checks import check_whole_number, checked_input_size
from norton.common.errors import InputError
from norton.common.registry import import_submodules
from norton.decomposition import layer_ranks
from norton.graph import wiring_of
from norton.graph.plan import apply_plan_
from norton.models.base import NETWORKS, Network
from norton.models.foreign import foreign_network, is_path
from norton.pruning.allocation import Allocation, read_rates

import_submodules(__name__)

__all__ = ["NETWORKS", "Network", "build", "dense_network", "list_models"]


def list_models() -> list[str]:
    """The published networks that `norton.build` knows by name, sorted."""
    return sorted(NETWORKS)


def build(
    arch: str,
    rank: int | Mapping[str, int | None] = 0,
    compress_rate: str | float | Sequence[float] | None = None,
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised network: one in the published layout, or what a constructor makes.

    arch: a published network's name, or the dotted path of a constructor, e.g. `torchvision.models.mobilenet_v2`, which
    is imported and called, with num_classes= if that is given.  input_size: (channels, height, width) of the latter's
    images; by default what it says or usually takes.  kwargs: more arguments of a constructor, in plain data, which
    files remember.  rank: 0 for dense, else as in `norton.decompose`.
    compress_rate: as in `norton.prune`; none removes nothing.

    Raises InputError for an unknown network, a path that leads nowhere, and for ranks and rates that do not fit it.
    """
    net = dense_network(arch, num_classes, input_size, kwargs)
    plan = []
    if rank != 0:
        plan.append({"op": "decompose", "method": "cp", "ranks": layer_ranks(net, rank)})
    if compress_rate is not None and (keep := _first_channels(net, compress_rate)):
        plan.append({"op": "prune", "keep": keep})
    if not plan:
        return net
    apply_plan_(net, plan)
    for layer in nn.Module.modules(net):  # what surgery left was drawn for the dense widths
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return net


def dense_network(
    arch: str,
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The dense network, which remembers what it takes to build it again."""
    if num_classes is None and not is_path(arch):
        num_classes = NETWORKS[arch].default_classes
    if num_classes is not None:
        check_whole_number(f"{arch}: num_classes", num_classes, 1)
    if is_path(arch):
        return foreign_network(arch, num_classes, input_size, kwargs)
    if kwargs:
        raise InputError(
            f"{arch}: kwargs has {', '.join(kwargs)}; a published network takes no arguments; leave it out"
        )
    if input_size is not None and checked_input_size(input_size) != NETWORKS[arch].input_size:
        raise InputError(
            f"{arch}: its input_size is {NETWORKS[arch].input_size}, not {tuple(input_size)}; leave it out"
        )
    net = NETWORKS[arch](num_classes=num_classes)
    net.arch, net.num_classes = arch, num_classes
    return net


def _first_channels(net: nn.Module, compress_rate: str | float | Sequence[float]) -> dict[str, list[int]]:
    """Weights are still random, so any channels will do."""
    wiring = wiring_of(net)
    axes = Allocation(read_rates(compress_rate)).rated(net, wiring)
    return {wiring.name(axis): list(range(width)) for axis, width in axes.items() if width < wiring.width(axis)}
