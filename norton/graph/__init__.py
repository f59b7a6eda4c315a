"""Who writes, passes and reads the channels of a network, and how they are cut.

`wiring` is the result: the channels of a network, as a model declares them or as `tracing` finds them, and the `axes`
that follow from it.  For that, `execution` records a forward pass on some `inputs`, run on `meta` tensors at one of the
`input_sizes` (`deciding` is about networks that need values), `channels` are followed through it by the `rules`, one
per operation, with ids that are moved (`moving`) as the numbers are, and `proving` runs the network again after trial
cuts.  `numbers` that modules hold tell whose they are.  `rule` and `declare` (`declarations`) are for operations and
layers of a user's own.
`slicing` cuts layers; `plan` is what was done to a network, as plain data that can be replayed; `layers` and
`parameters` answer what other rooms ask of single layers.

Imports `common` alone.  What a network loses is decided in `pruning`; ranks are chosen in `decomposition` and `budget`;
`deployment` folds by the same record.
"""

import torch
from torch import nn

from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.inputs import Example
from norton.graph.layers import check_has_layers, network_in
from norton.graph.nodes import argument, first_argument, value_of
from norton.graph.plan import OPERATIONS
from norton.graph.rules import declare, rule
from norton.graph.slicing import cut_, freeze_obstacles
from norton.graph.tracing import trace_wiring
from norton.graph.wiring import Wiring

__all__ = [
    "ChannelTracer",
    "LocatedChannels",
    "Wiring",
    "argument",
    "declare",
    "first_argument",
    "located",
    "rule",
    "value_of",
    "wiring_of",
]


def wiring_of(net: nn.Module, example: Example | None = None) -> Wiring:
    """The channel axes of a network: as it declares them (`net.wiring`), else as traced, see `trace_wiring`.

    `frozen` and `left_whole` of the result say what cannot be pruned, and why.
    """
    net = network_in(net)
    check_has_layers(net)
    declared = getattr(net, "wiring", None)
    wiring = trace_wiring(net, example) if declared is None else declared()
    freeze_obstacles(net, wiring)
    return wiring


@OPERATIONS.register("prune")
def apply_prune_(net: nn.Module, step: dict) -> None:
    """Cut a network as a recorded step says, in place."""
    with torch.device("cpu"):  # files are replayed where new tensors have no values, and a proof compares some
        wiring = wiring_of(net)
    cut_(net, wiring, {wiring.axis_of(layer): channels for layer, channels in step["keep"].items()})
