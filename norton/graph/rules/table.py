"""The table of rules: by the name of a function or method, and by the type of a layer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx, nn

from norton.graph.channels import ChannelTracer, Located
from norton.graph.layers import is_decomposed

Follow = Callable[[ChannelTracer, fx.Node], Located]


@dataclass(frozen=True)
class Rule:
    """What an operation does with channels.

    follow: (tracer, node) → the channels of what the node gives.  joins: it takes several tensors; the inputs of
    others that take several are kept whole.  takes_shifted: it takes channels that a shortcut has moved by position.
    takes_entries: it takes parameters and buffers with an entry per channel just as they are.  gives_parts: it may give
    several tensors, and then a list of what each has.
    """

    follow: Follow
    joins: bool = False
    takes_shifted: bool = False
    takes_entries: bool = False
    gives_parts: bool = False


RULES: dict[str, Rule] = {}  # name of a function or method → rule
LAYER_RULES: dict[type[nn.Module], Rule] = {}  # type of a layer → rule, also for the types derived from it


def rule(
    operations: str = "",
    *,
    layers: Iterable[type[nn.Module]] = (),
    joins: bool = False,
    takes_shifted: bool = False,
    takes_entries: bool = False,
    gives_parts: bool = False,
) -> Callable[[Follow], Follow]:
    """Decorator that makes a function the rule of operations (names with spaces between them) and types of layers."""

    def register(follow: Follow) -> Follow:
        entry = Rule(follow, joins, takes_shifted, takes_entries, gives_parts)
        RULES.update(dict.fromkeys(operations.split(), entry))
        LAYER_RULES.update(dict.fromkeys(layers, entry))
        return follow

    return register


def rule_of_layer(layer: nn.Module) -> Rule | None:
    """The rule of a layer by its type; None where there is none.  A decomposed layer writes filters as a dense does."""
    kinds = (nn.Conv2d,) if is_decomposed(layer) else type(layer).__mro__
    return next((LAYER_RULES[kind] for kind in kinds if kind in LAYER_RULES), None)
