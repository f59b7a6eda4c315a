"""The plan of a network: what was decided in each compression step, as plain data that can be replayed.

Deciding needs weights, applying needs only the network, so a checkpoint rebuilds its network from the dense one.
A step is `{"op": "decompose", "method", "ranks": {layer: rank}}` or `{"op": "prune", "keep": {layer: [channel, ...]}}`,
where `layer` names the first writer of a channel axis and the channels are in their new order.
"""

from torch import nn

from norton.common.registry import Registry
from norton.graph.layers import network_in

OPERATIONS = Registry("operation")  # name → function (net, step) that applies a recorded step in place


def record_step(net: nn.Module, step: dict) -> None:
    """Append a step to the network's plan."""
    net.plan = [*plan_of(net), step]  # type: ignore[assignment]  # torch declares attributes as modules and tensors


def plan_of(net: nn.Module) -> list[dict]:
    """The steps since the dense network; none for a network that was never compressed."""
    return getattr(network_in(net), "plan", [])


def apply_plan_(net: nn.Module, plan: list[dict]) -> nn.Module:
    """Give a dense network the shapes of a compressed one, in place.  Decomposed weights are undefined afterwards."""
    for step in plan:
        OPERATIONS[step["op"]](net, step)
        record_step(net, step)
    return net
