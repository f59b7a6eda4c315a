"""Operations that compute one number of many: reductions, softmax, normalisation over channels."""

from torch import fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, first_argument, name_of, place_of, value_of
from norton.graph.rules.table import rule


@rule("mean sum amax amin std var norm vector_norm linalg_vector_norm")
def reduce(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels stay apart where only other dimensions go; removed ones add nothing to a sum or a norm over channels."""
    place = 2 if "norm" in name_of(node) else 1
    x, value, dims = tracer.input(node), value_of(first_argument(node)), argument(node, place, "dim")
    if x is None or dims is None or isinstance(dims, fx.Node | bool):
        return tracer.unknown(node, "it mixes all channels")
    gone = {dim % value.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    if x.dim in gone:
        adds = _order(node) > 0 and not x.shifted
        return None if adds else tracer.unknown(node, "it mixes all channels")
    kept = value_of(node).dim() == value.dim()
    return x if kept else LocatedChannels(x.channels, x.dim - sum(dim < x.dim for dim in gone))


def _order(node: fx.Node) -> float:
    """The power of the channels that a sum or norm adds; 0 for a reduction that removed channels would change."""
    if name_of(node) == "sum":
        return 1
    if name_of(node) in ("mean", "amax", "amin", "std", "var"):
        return 0
    order = argument(node, 1, "p" if name_of(node) in ("norm", "normalize") else "ord", 2)
    return 2 if order in (None, "fro") else order if type(order) in (int, float) else 0


@rule("normalize")
def normalize(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Division by a norm, to which removed channels add nothing."""
    return tracer.input(node) if _order(node) > 0 else tracer.unknown(node, "it mixes all channels")


@rule("softmax log_softmax")
def softmax(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels stay apart along another dimension."""
    x, dim = tracer.input(node), argument(node, 1, "dim")
    if x and isinstance(dim, int) and dim % value_of(first_argument(node)).dim() != x.dim:
        return x
    return tracer.unknown(node, "it mixes all channels")


@rule("layer_norm", layers=[nn.LayerNorm], joins=True)
def layer_norm(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels stay apart where they are not among the last dimensions, over which it normalises."""
    x = tracer.input(node)
    layer = tracer.layer(node) if node.op == "call_module" else None
    normalised = layer.normalized_shape if isinstance(layer, nn.LayerNorm) else argument(node, 1, "normalized_shape")
    if x is None or x.dim < value_of(first_argument(node)).dim() - len(fx.node.map_arg(normalised, value_of)):
        for other in node.all_input_nodes[1:]:  # its weight and bias, which stand for positions
            tracer.wiring.freeze(() if (y := tracer.located[other]) is None else y.channels, place_of(node))
        return x
    tracer.unknown(node, "it normalises over all channels, so that removing one changes the others")
    return x
