"""A network as a short table: its layers with their ranks, filters and costs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from norton.common.tables import ShownAsTable
from norton.graph.inputs import Example
from norton.graph.layers import is_decomposed, network_in, width
from norton.measure.counting import Complexity, complexity


@dataclass(frozen=True)
class LayerSummary:
    """A convolution or linear layer, decomposed or not; rank: None where it is dense.  macs: for one image."""

    layer: str
    kind: str
    rank: int | tuple[int, ...] | None
    filters: int
    macs: int
    params: int


@dataclass(frozen=True, repr=False)
class NetworkSummary(ShownAsTable):
    """What `summary` found; prints as a table, also in a notebook."""

    network: str
    layers: list[LayerSummary]
    complexity: Complexity

    def title(self) -> str:
        decomposed = sum(layer.rank is not None for layer in self.layers)
        return (
            f"{self.network}: {self.complexity.macs:,} MACs, {self.complexity.params:,} parameters; "
            f"{decomposed} of {len(self.layers)} layers decomposed"
        )

    def rows(self) -> list[dict[str, Any]]:
        """A row per convolution and linear layer, in forward order."""
        return [
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "rank": "dense" if layer.rank is None else str(layer.rank).strip("()"),
                "filters": layer.filters,
                "MACs": layer.macs,
                "params": layer.params,
            }
            for layer in self.layers
        ]


def summary(
    net: nn.Module, input_size: Sequence[int] | None = None, *, example: Example | None = None
) -> NetworkSummary:
    """The layers of a network with their ranks, filters and costs, for any network, compressed or not.

    input_size: (channels, height, width) of an image; by default the network's own.  example: what it takes instead, as
    for `norton.complexity`, whose InputErrors this raises.
    """
    net = network_in(net)
    found = complexity(net, input_size, example=example)
    layers = []
    for name, cost in found.by_layer.items():
        layer = net.get_submodule(name)
        if is_decomposed(layer) or isinstance(layer, _ConvNd | nn.Linear):
            rank = layer.rank if is_decomposed(layer) else None
            layers.append(LayerSummary(name, type(layer).__name__, rank, width(layer), cost.macs, cost.params))
    return NetworkSummary(type(net).__name__, layers, found)
