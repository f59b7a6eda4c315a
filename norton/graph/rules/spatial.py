"""Poolings, paddings and upsampling: each channel for itself, while the dimensions behind it change."""

import numpy as np
from torch import Tensor, fx, nn
from torch.nn.modules import padding, pooling, upsampling

from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.rules.table import rule

_LAYERS = [
    kind
    for module in (pooling, padding, upsampling)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == module.__name__
]


@rule(
    """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool2d
    max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices interpolate upsample""",
    layers=_LAYERS,
    gives_parts=True,
)
def keep_outer(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | list | None:
    """Channels at their place, if that is not among the last dimensions, which change.

    The places of what is largest, which poolings may give beside it, are followed for unpooling alone.
    """
    x, value = tracer.input(node), value_of(first_argument(node))
    if not x or max(x.dims, default=0) >= value.dim() - _changed_dimensions(tracer, node):
        return tracer.unknown(node)
    if isinstance(value_of(node), Tensor):
        return x
    places = [user for part in node.users if name_of(part) != "getitem" or part.args[1] == 1 for user in part.users]
    if not all(_unpools(tracer, user) for user in places):
        return tracer.unknown(node, "it gives places in each channel, which are taken otherwise than for unpooling")
    return [x, x]


def _unpools(tracer: ChannelTracer, node: fx.Node) -> bool:
    return _name(tracer, node).lower().replace("_", "").startswith("maxunpool")


@rule("max_unpool1d max_unpool2d max_unpool3d", joins=True, sizes=(5, "output_size"))
@rule(layers=[nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d], joins=True, sizes=(2, "output_size"))
def unpool(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place, each with places of its own."""
    x, places = tracer.input(node), tracer.at(argument(node, 1, "indices"))
    if x is None or places is None or x.dims != places.dims or x.ids.shape != places.ids.shape:
        return tracer.unknown(node)
    return tracer.declare(node, x, tracer.wiring.add, *(one.ids.flatten().numpy() for one in (x, places)))


@rule("grid_sample", joins=True)
def sample(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place, at other positions, which are the same for all of them."""
    tracer.freeze(tracer.at(argument(node, 1, "grid")), node, "it stands for positions")
    x = tracer.input(node)
    return x if x is None or x.dims == [1] else tracer.unknown(node)


@rule("affine_grid", sizes=(1, "size"))
def make_grid(tracer: ChannelTracer, node: fx.Node) -> None:
    """Positions for a tensor of some size, whatever its number of channels."""
    tracer.freeze(tracer.input(node), node, "it stands for positions")
    return None


@rule("roll")
def roll(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """The same for a tensor that is turned round along other dimensions than its channels."""
    x, value, dims = tracer.input(node), value_of(first_argument(node)), argument(node, 2, "dims", ())
    turned = {dim % value.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    return x if x and turned and turned.isdisjoint(x.dims) else tracer.unknown(node)


@rule("pad")
def pad(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """The same; constant channels in front and behind of others stay, as an input would."""
    x, value, amounts = tracer.input(node), value_of(first_argument(node)), argument(node, 1, "pad")
    if x is None:
        return None
    padded = {value.dim() - 1 - place: amounts[2 * place : 2 * place + 2] for place in range(len(amounts) // 2)}
    if not any(any(padded.get(dim, ())) for dim in x.dims):
        return x
    [dim] = x.dims
    before, after = padded[dim]
    if argument(node, 2, "mode", "constant") != "constant" or min(before, after) < 0 or x.shifted:
        return tracer.unknown(node)
    sides = [tracer.wiring.input(int(count)) for count in (before, after)]
    return located(np.concatenate([sides[0], x.ids.flatten().numpy(), sides[1]]), dim, value.dim())


def _changed_dimensions(tracer: ChannelTracer, node: fx.Node) -> int:
    """How many of the last dimensions an operation changes."""
    name = _name(tracer, node).removesuffix("_with_indices")
    if name[-2:] in ("1d", "2d", "3d"):
        return int(name[-2])
    return value_of(first_argument(node)).dim() - 2


def _name(tracer: ChannelTracer, node: fx.Node) -> str:
    return type(tracer.layer(node)).__name__ if node.op == "call_module" else name_of(node)
