"""Poolings, paddings and upsampling: each channel for itself, while the dimensions behind it change."""

from torch import fx, nn
from torch.nn.modules import padding, pooling, upsampling

from norton.graph.channels import ChannelTracer, LocatedChannels
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
    interpolate upsample pad""",
    layers=_LAYERS,
)
def keep_outer(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place, if that is not among the last dimensions, which change."""
    x, value = tracer.input(node), value_of(first_argument(node))
    return x if x and x.dim < value.dim() - _changed_dimensions(tracer, node) else tracer.unknown(node)


def _changed_dimensions(tracer: ChannelTracer, node: fx.Node) -> int:
    """How many of the last dimensions an operation changes."""
    name = type(tracer.layer(node)).__name__ if node.op == "call_module" else name_of(node)
    if name == "pad":
        return len(argument(node, 1, "pad")) // 2
    if name[-2:] in ("1d", "2d", "3d"):
        return int(name[-2])
    return value_of(first_argument(node)).dim() - 2
