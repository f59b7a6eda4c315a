"""Patches of images as columns of a matrix (`unfold`), and back (`fold`): a block of rows for each channel."""

import numpy as np
from torch import fx, nn

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.nodes import argument, first_argument, value_of
from norton.graph.rules.table import rule


@rule("unfold", layers=[nn.Unfold])
def unfold(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Each channel becomes as many rows as a patch has positions.

    The method of that name gives windows along one dimension, with their positions behind all others.
    """
    x, value = tracer.input(node), value_of(first_argument(node))
    if x is None:
        return None
    if value_of(node).dim() > value.dim():
        dim = argument(node, 1, "dimension")
        if isinstance(dim, int) and dim % value.dim() not in x.dims:
            return x._replace(ids=x.ids.unsqueeze(-1))
        return tracer.unknown(node, "it takes windows of channels")
    dim = value.dim() - 3
    channels = x.along(dim, value.shape[dim])
    if channels is None:
        return tracer.unknown(node)
    rows: Channels = np.repeat(channels, value_of(node).shape[dim] // len(channels))
    return located(rows, dim, value_of(node).dim())


@rule("fold", layers=[nn.Fold])
def fold(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A block of rows becomes one channel, and goes as a whole."""
    x, value = tracer.input(node), value_of(first_argument(node))
    dim = value.dim() - 2
    rows = None if x is None else x.along(dim, value.shape[dim])
    if x is None or rows is None:
        return tracer.unknown(node)
    channels = value_of(node).shape[dim]
    found = located(rows.reshape(channels, -1)[:, 0], dim, value_of(node).dim())
    return tracer.declare(node, found, tracer.wiring.tie_blocks, rows, channels)
