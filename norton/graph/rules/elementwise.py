"""Operations on each number for itself: channels stay where they are."""

from torch import fx

from norton.graph.channels import ChannelTracer, LocatedChannels
from norton.graph.layers import ELEMENTWISE_LAYERS
from norton.graph.rules.table import rule


@rule(
    """relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish sigmoid sigmoid_
    logsigmoid tanh tanh_ hardswish hardsigmoid hardtanh hardtanh_ hardshrink softshrink softplus softsign rrelu
    threshold exp log log1p expm1 sqrt rsqrt square abs neg sin cos erf sign reciprocal clamp clamp_ clip clone
    contiguous detach float half double bfloat16 to type dropout dropout1d dropout2d dropout3d alpha_dropout
    feature_dropout feature_alpha_dropout stochastic_depth""",
    layers=ELEMENTWISE_LAYERS,
)
def keep(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Each channel for itself, at its place."""
    return tracer.input(node)
