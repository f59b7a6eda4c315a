"""Operations on each number for itself: channels stay where they are."""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.layers import ELEMENTWISE_LAYERS
from norton.graph.nodes import argument, name_of
from norton.graph.rules.table import Sizes, rule

# Also in place, with a `_` behind.
_NAMES = """
relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid expit logit logsigmoid log_sigmoid tanh hardswish hardsigmoid
hardtanh hardshrink softshrink tanhshrink softplus softsign rrelu threshold _threshold clamp clip clamp_min clamp_max
exp exp2 expm1 log log1p log2 log10 sqrt rsqrt square reciprocal abs absolute neg negative positive sign sgn signbit
sin cos tan sinh cosh sinc asin acos atan arcsin arccos arctan asinh acosh atanh arcsinh arccosh arctanh deg2rad rad2deg
erf erfc erfcx erfinv lgamma gammaln digamma i0 i0e i1 i1e entr ndtr log_ndtr round floor ceil trunc fix frac angle conj
conj_physical resolve_conj resolve_neg logical_not bitwise_not invert isnan isinf isfinite isneginf isposinf isreal
nan_to_num zero clone contiguous detach data alias lift_fresh requires_grad share_memory to_dense dequantize cpu cuda
float half double bfloat16 bool byte char short int long cfloat cdouble chalf type _to_copy dropout dropout1d dropout2d
dropout3d alpha_dropout feature_dropout feature_alpha_dropout bernoulli
"""


@rule(" ".join(f"{name} {name}_" for name in _NAMES.split()), layers=ELEMENTWISE_LAYERS)
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
