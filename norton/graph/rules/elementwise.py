"""Operations on each number for itself: channels stay where they are."""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.layers import ELEMENTWISE_LAYERS
from norton.graph.nodes import argument, name_of
from norton.graph.rules.table import Sizes, rule

_NAMES = """
relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu silu_ mish mish_ sigmoid sigmoid_
logit logsigmoid tanh tanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ hardtanh hardtanh_ hardshrink softshrink
tanhshrink softplus softsign rrelu rrelu_ threshold threshold_ clamp clamp_ clip clip_ clamp_min clamp_min_ clamp_max
clamp_max_ exp exp_ exp2 log log1p log2 log10 expm1 sqrt sqrt_ rsqrt rsqrt_ square square_ abs abs_ absolute neg neg_
negative positive sin cos tan sinh cosh asin acos atan arctan asinh acosh atanh erf sign reciprocal reciprocal_ round
floor ceil trunc frac logical_not isnan isinf isfinite nan_to_num zero_ clone contiguous detach data cpu cuda float half
double bfloat16 type dropout dropout_ dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
stochastic_depth
"""


@rule(_NAMES, layers=ELEMENTWISE_LAYERS)
def keep(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Each channel for itself, at its place."""
    return tracer.input(node)


@rule("to type_as", joins=True)
def convert(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A tensor on the device or of the type of another one, whose channels do not matter."""
    return tracer.input(node)


@rule("zeros_like ones_like empty_like full_like rand_like randn_like")
def fill(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A new tensor with the same channels."""
    if name_of(node) == "full_like":
        tracer.freeze_counts(node, _filling(node, 1))
    return tracer.input(node)


@rule("new_ones new_empty", joins=True, sizes=Sizes(1, "size", several=True))
@rule("new_full", joins=True, sizes=(1, "size"))  # also filled with a tensor of one number
@rule("new_tensor", joins=True)
def make(tracer: ChannelTracer, node: fx.Node) -> None:
    """A new tensor of a size of its own, of which only the type and device are another one's."""
    if name_of(node) in ("new_full", "new_tensor"):
        tracer.freeze_counts(node, _filling(node, 1 if name_of(node) == "new_tensor" else 2))
    return None


@rule("full", sizes=(0, "size"))
def make_full(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A new tensor of a size and a value."""
    tracer.freeze_counts(node, _filling(node, 1))
    return None


def _filling(node: fx.Node, position: int) -> list[fx.Node]:
    """The number that fills a new tensor, where it comes of a size."""
    value = argument(node, position, "data" if name_of(node) == "new_tensor" else "fill_value")
    return [value] if isinstance(value, fx.Node) else []
