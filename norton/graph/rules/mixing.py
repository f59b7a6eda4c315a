"""Operations that compute one number of many: reductions, softmax, normalisation over channels.

A statistic of channels (mean, largest, norm, variance) is one of those that stay.  It equals that of the whole network
in which the others take no part; see the documentation on what pruning keeps.
"""

from torch import fx, nn

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber
from norton.graph.rules.arithmetic import combine
from norton.graph.rules.computed_weights import ancestors
from norton.graph.rules.functional import with_entries
from norton.graph.rules.table import rule


@rule("mean sum amax amin max min std var norm linalg_norm linalg_vector_norm var_mean", joins=True, gives_parts=True)
def reduce(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | list | None:
    """Channels stay apart where only other dimensions go; a statistic of channels is one of those that stay."""
    if name_of(node) in ("max", "min") and isinstance(argument(node, 1, "other"), fx.Node):
        return combine(tracer, node)
    place = 2 if "norm" in name_of(node) else 1
    x, value, dims = tracer.input(node), value_of(first_argument(node)), argument(node, place, "dim")
    if x is None:
        return None
    if dims is None or isinstance(dims, fx.Node | bool):
        return tracer.unknown(node, "it mixes all channels")
    gone = {dim % value.dim() for dim in ([dims] if isinstance(dims, int) else dims)}
    if gone & set(x.dims) and name_of(node) == "linalg_norm" and len(gone) > 1 and argument(node, 1, "ord") is not None:
        return tracer.unknown(node, "it is a norm of matrices")
    if gone & set(x.dims) and (x.shifted or _order(node) <= 0):
        return tracer.unknown(node, "it mixes all channels")
    if gone & set(x.dims) and _of_entries(tracer, node):
        return tracer.unknown(node, "it mixes entries of a parameter, which are the same whatever the channels are")
    if gone & set(x.dims) and any(_is_index(user) for user in node.users):
        return tracer.unknown(node, "it gives the place of a channel")
    first = value_of(node) if hasattr(value_of(node), "dim") else value_of(node)[0]
    ids = x.ids.narrow(0, 0, x.ids.shape[0])
    for dim in sorted(gone, reverse=True):
        ids = ids.narrow(dim, 0, 1) if first.dim() == value.dim() else ids.select(dim, 0)
    found = None if gone & set(x.dims) else x._replace(ids=ids)
    return found if hasattr(value_of(node), "dim") else [found, found]


def _of_entries(tracer: ChannelTracer, node: fx.Node) -> bool:
    """Whether a node computes something of parameters outside of layers alone."""
    behind = ancestors(node)
    leaves = [one for one in behind if one.op in ("placeholder", "call_module", "get_attr")]
    return all(one.op == "get_attr" and str(one.target) in tracer.free_tensors for one in leaves)


def _is_index(part: fx.Node) -> bool:
    """Whether a node takes the places that `max` or `min` gives beside its values, and something takes them."""
    return (
        name_of(part) == "getitem"
        and part.args[1] == 1
        and len(part.users) > 0
        and name_of(part.all_input_nodes[0]) in ("max", "min")
    )


def _order(node: fx.Node) -> float:
    """The power of the channels that a sum or norm adds; 0 where a channel of zeros may change it by more than that."""
    if "norm" not in name_of(node):
        return 1
    order = argument(node, 1, "p" if name_of(node) in ("norm", "normalize") else "ord", 2)
    return 2 if order in (None, "fro") else order if type(order) in (int, float) else 0


@rule("normalize")
def normalize(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Division by a norm, to which removed channels add nothing."""
    return tracer.input(node) if _order(node) > 0 else tracer.unknown(node, "it mixes all channels")


@rule("local_response_norm", layers=[nn.LocalResponseNorm])
def respond(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Division by the channels beside each, which others would take the place of."""
    x = tracer.input(node)
    return x if x and 1 not in x.dims else tracer.unknown(node, "it reads the neighbours of each channel")


@rule("softmax log_softmax", layers=[nn.Softmax, nn.LogSoftmax, nn.Softmax2d])
def softmax(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels stay apart along another dimension."""
    x, dim = tracer.input(node), argument(node, 1, "dim")
    if node.op == "call_module":
        dim = getattr(tracer.layer(node), "dim", -3)
    if x and isinstance(dim, int) and dim % value_of(first_argument(node)).dim() not in x.dims:
        return x
    return tracer.unknown(node, "it mixes all channels")


@rule(
    "layer_norm rms_norm",
    layers=[nn.LayerNorm, nn.RMSNorm],
    joins=True,
    takes_entries=True,
    sizes=(1, "normalized_shape"),
)
def layer_norm(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels stay apart where they are not among the last dimensions, over which it normalises.

    Where they are the last one, alone, they are normalised by those that stay.
    """
    x, value = tracer.input(node), value_of(first_argument(node))
    layer = tracer.layer(node) if node.op == "call_module" else None
    sizes = (
        layer.normalized_shape
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm)
        else argument(node, 1, "normalized_shape")
    )
    if x is None or max(x.dims, default=0) < value.dim() - len(sizes):
        for other in tracer.arguments(node)[1:]:  # its weight and bias, which stand for positions
            tracer.freeze(other, node, "it stands for positions")
        return x
    channels = None if x.shifted else x.along(-1, value.shape[-1])
    if channels is None or len(sizes) != 1:
        return tracer.unknown(node, "it normalises over channels and other dimensions together")
    if layer is not None:
        return tracer.declare(node, x, tracer.wiring.norm, str(node.target), channels)
    if not isinstance(size := sizes[0], OwnNumber | fx.Node):
        return tracer.unknown(node, f"it normalises {size} channels, which does not follow them")
    if isinstance(size, OwnNumber):
        tracer.declare(node, x, tracer.wiring.size, size.names[0], channels)
    return with_entries(tracer, node, x, channels, [arg for arg in node.all_input_nodes[1:] if arg.op == "get_attr"])
