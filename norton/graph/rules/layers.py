"""Layers with parameters: those that write filters, and those that have an entry per channel."""

from typing import Any, cast

from torch import fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.layers import NORM_LAYERS, WRITING_LAYERS
from norton.graph.nodes import first_argument, place_of, value_of
from norton.graph.rules.table import rule


@rule(layers=WRITING_LAYERS, joins=True, takes_shifted=True, sizes=(1, "output_size"))
def write(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels:
    """The filters of a convolution or linear layer, decomposed or not; it reads what it is called with."""
    return read_and_write(tracer, node, str(node.target))


def read_and_write(tracer: ChannelTracer, node: fx.Node, name: str) -> LocatedChannels:
    """The same for the layer of that name, which a node computes."""
    x, value, layer = tracer.input(node), value_of(first_argument(node)), tracer.net.get_submodule(name)
    dim = value.dim() - 1 - (0 if hasattr(layer, "out_features") else len(cast(Any, layer).kernel_size))
    if x is not None and x.dims and not x.shifted and value.shape[dim] == 1 and value.shape == value_of(node).shape:
        return _slide(tracer, node, name, x)
    read = None if x is None or x.shifted else x.along(dim, value.shape[dim])
    if read is None:
        tracer.freeze_arguments(node, "it reads them in another dimension")
        read = tracer.wiring.input(value.shape[dim])
    try:
        tracer.wiring.layer(name, read)
    except ValueError as error:
        tracer.unknown(node, str(error))
        tracer.keep_whole(name, f"{place_of(node)}: {error}")
    return located(tracer.wiring.written(name), dim, value_of(node).dim())


def _slide(tracer: ChannelTracer, node: fx.Node, name: str, x: LocatedChannels) -> LocatedChannels:
    """One filter that slides along channels, as in efficient channel attention: over the neighbours that stay."""
    filters = tracer.wiring.layer(name, tracer.wiring.input(1))
    tracer.wiring.freeze(filters, f"{place_of(node)}: its one filter slides along channels")
    return x


@rule(layers=[nn.LSTM, nn.GRU, nn.RNN], joins=True, gives_parts=True)
def read_sequence(tracer: ChannelTracer, node: fx.Node) -> None:
    """A recurrent layer reads the features of each step; what it gives stays whole."""
    x, value = tracer.input(node), value_of(first_argument(node))
    if x is None:
        return tracer.unknown(node)
    read = x.along(-1, value.shape[-1])
    if read is None:
        return tracer.unknown(node, "it reads them in another dimension")
    for other in tracer.arguments(node)[1:]:
        tracer.freeze(other, node, "it is a state of a recurrent layer")
    tracer.declare(node, x, tracer.wiring.read, str(node.target), read)
    return None


@rule(layers=[*NORM_LAYERS, nn.GroupNorm, nn.PReLU])
def scale_channels(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A layer with an entry per channel; a GroupNorm also ties the channels of each group."""
    x, layer = tracer.input(node), tracer.layer(node)
    if x is None or x.shifted:
        return tracer.unknown(node)
    if isinstance(layer, nn.PReLU) and layer.num_parameters == 1:
        return x
    channels = x.along(1, value_of(node).shape[1])
    if channels is None:
        return tracer.unknown(node)
    declaration = tracer.wiring.group_norm if isinstance(layer, nn.GroupNorm) else tracer.wiring.norm
    return tracer.declare(node, x, declaration, str(node.target), channels)
