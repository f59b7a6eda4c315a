"""Who writes, passes and reads the channels of a network, and how they are cut."""

from torch import nn

from norton.graph.plan import OPERATIONS
from norton.graph.slicing import cut_, obstacle
from norton.graph.tracing import Example, trace_wiring
from norton.graph.wiring import Wiring


def wiring_of(net: nn.Module, example: Example | None = None) -> Wiring:
    """The channel axes of a network: as it declares them (`net.wiring`), else as traced, see `trace_wiring`.

    `frozen` and `left_whole` of the result say what cannot be pruned, and why.
    """
    wiring = net.wiring() if hasattr(net, "wiring") else trace_wiring(net, example)
    layers = {name for names in wiring.writers.values() for name in names}
    for name in sorted(layers.union(*({name for name, _ in part} for part in (wiring.reads, wiring.passes)))):
        if reason := obstacle(net.get_submodule(name)):
            wiring.freeze_layer(name, f"{name}: {reason}")
    return wiring


@OPERATIONS.register("prune")
def apply_prune_(net: nn.Module, step: dict) -> None:
    """Cut a network as a recorded step says, in place."""
    wiring = wiring_of(net)
    cut_(net, wiring, {wiring.axis_of(layer): channels for layer, channels in step["keep"].items()})
