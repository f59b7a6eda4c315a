"""Layers as functions that take the parameters of a module, such as `F.conv2d(x, self.weight, self.bias)`."""

from collections.abc import Iterable

from torch import Tensor, fx, nn

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.layers import TRANSPOSED_LAYERS, is_decomposed
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.numbers import OwnNumber, is_own
from norton.graph.rules.computed_weights import ancestors, comes_of, filters_stand, inputs_stand, read_by_all
from norton.graph.rules.depthwise import filter_each
from norton.graph.rules.layers import read_and_write
from norton.graph.rules.table import Sizes, rule

_WRITERS: dict[str, type[nn.Module]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
    "linear": nn.Linear,
}


@rule(" ".join(_WRITERS), joins=True, takes_shifted=True, takes_entries=True, sizes=(6, "groups"))
def write(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """The filters of a layer that hands its own weight and bias to the function that its kind of layer calls.

    With a weight of no layer channels can be told apart where each is filtered for itself.
    """
    weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
    name = _layer_of(tracer, weight, _WRITERS[name_of(node)])
    if name is None and (found := filter_each(tracer, node)) is not None:
        return found
    if name is None or (bias is not None and not comes_of(bias, name, "bias")):
        return tracer.unknown(
            node, "its weight and bias are not those of one layer of torch's; see norton.graph.declare"
        )
    layer = tracer.net.get_submodule(name)
    groups = argument(node, 6, "groups", 1)
    if not is_own(groups, f"{name}.groups") and (groups, getattr(layer, "groups", 1)) != (1, 1):
        return tracer.unknown(node, f"its number of groups does not follow that of {name}")
    for tensor in (weight, bias):
        if tensor is None:
            continue
        if tensor.op != "get_attr" and not _is_followed(tracer, tensor, name, layer, tensor is weight):
            return tracer.unknown(node, f"it computes the weight or bias of {name} in a way that is not followed")
        read_by_all(tracer, [*ancestors(tensor), node])
    return read_and_write(tracer, node, name)


def _layer_of(tracer: ChannelTracer, weight: fx.Node, kind: type[nn.Module]) -> str | None:
    """The layer of that kind whose weight this is, or is computed of."""
    names = (str(one.target).rpartition(".")[0] for one in ancestors(weight) if one.op == "get_attr")
    for name in names:
        if isinstance(tracer.net.get_submodule(name), kind) and comes_of(weight, name, "weight"):
            return name
    return None


def _is_followed(tracer: ChannelTracer, tensor: fx.Node, name: str, layer: nn.Module, is_weight: bool) -> bool:
    """Whether a computed weight or bias of a layer has its filters, and its inputs, at their places."""
    plain = not isinstance(layer, TRANSPOSED_LAYERS) and not is_decomposed(layer)
    if not plain or not filters_stand(tracer, tensor, tracer.wiring.written_by(name)):
        return False
    return not is_weight or inputs_stand(tracer, tensor, f"{name}.weight".lstrip("."))


@rule("batch_norm instance_norm prelu", joins=True, takes_entries=True)
def normalise(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Channels at their place, with tensors that have an entry for each."""
    x = tracer.input(node)
    if x is not None and 1 not in x.dims and not x.shifted and value_of(node).shape[1] > 1:
        return x  # along other dimensions, over which statistics are those of what stays
    channels = None if x is None or x.shifted else x.along(1, value_of(node).shape[1])
    if x is None or channels is None:
        return tracer.unknown(node)
    return with_entries(tracer, node, x, channels, _other_tensors(node))


@rule("group_norm", joins=True, takes_entries=True, sizes=Sizes(1, "num_groups", shows=False))
def group_norm(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """The same for a GroupNorm, whose groups go as wholes: their number must follow."""
    x, groups = tracer.input(node), argument(node, 1, "num_groups")
    channels = None if x is None or x.shifted else x.along(1, value_of(node).shape[1])
    if x is None or channels is None:
        return tracer.unknown(node)
    if groups > 1:
        if not isinstance(groups, OwnNumber):
            return tracer.unknown(node, "its number of groups does not follow the channels")
        tracer.declare(node, x, tracer.wiring.tie_blocks, channels, int(groups))
        tracer.declare(node, x, tracer.wiring.size, groups.names[0], channels)
    return with_entries(tracer, node, x, channels, _other_tensors(node))


def _other_tensors(node: fx.Node) -> list[fx.Node]:
    return [
        arg for arg in node.all_input_nodes if isinstance(value_of(arg), Tensor) and arg is not first_argument(node)
    ]


def with_entries(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels, channels: Channels, tensors: Iterable[fx.Node]
) -> LocatedChannels | None:
    """x after it met tensors of one dimension that have an entry for each of its channels, or one for all."""
    for tensor in tensors:
        size, y = tuple(value_of(tensor).shape), tracer.at(tensor)
        if y is not None and len(size) == 1:
            tracer.declare(node, x, tracer.wiring.add, channels, y.ids.expand(size).numpy())
        elif size == (len(channels),) and str(tensor.target) in tracer.free_tensors and tensor.op == "get_attr":
            tracer.declare_entries(node, x, channels, tensor, 0)
        elif size != (1,):
            return tracer.unknown(node, "it takes other tensors than parameters with an entry per channel")
    return x
