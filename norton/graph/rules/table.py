"""The table of rules: by the name of a function or method, and by the type of a layer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx, nn

from norton.graph.channels import ChannelTracer, Located
from norton.graph.execution import own_operation
from norton.graph.layers import is_decomposed
from norton.graph.nodes import name_of

Follow = Callable[[ChannelTracer, fx.Node], Located]


class Sizes(NamedTuple):
    """Which argument of an operation is a size that shows in the shape of a tensor, and so may follow the channels.

    position, name: as it is given.  several: also as several numbers, `new_zeros(2, 16)`.  shows: else it is a number
    of groups, which may follow where the rule knows the channels.
    """

    position: int
    name: str
    several: bool = False
    shows: bool = True

    def others(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """All other arguments."""
        behind = () if self.several else args[self.position + 1 :]
        return (*args[: self.position], *behind), {key: arg for key, arg in kwargs.items() if key != self.name}


@dataclass(frozen=True)
class Rule:
    """What an operation does with channels.

    follow: (tracer, node) → the channels of what the node gives.  joins: it takes several tensors; the inputs of
    others that take several are kept whole.  takes_shifted: it takes channels that a shortcut has moved by position.
    takes_entries: it takes parameters and buffers with an entry per channel just as they are.  gives_parts: it may give
    several tensors, and then a list of what each has.  sizes: the argument that is a size; no other number that it
    takes may change when channels are cut.
    """

    follow: Follow
    joins: bool = False
    takes_shifted: bool = False
    takes_entries: bool = False
    gives_parts: bool = False
    sizes: Sizes | None = None


RULES: dict[str, Rule] = {}  # name of a function or method → rule
FUNCTION_RULES: dict[Any, Rule] = {}  # function of a user's own, or custom operator → rule
LAYER_RULES: dict[type[nn.Module], Rule] = {}  # type of a layer → rule, also for the types derived from it


def rule(
    operations: str = "",
    *,
    layers: Iterable[type[nn.Module]] = (),
    functions: Iterable[Callable] = (),
    joins: bool = False,
    takes_shifted: bool = False,
    takes_entries: bool = False,
    gives_parts: bool = False,
    sizes: Sizes | tuple[int, str] | None = None,
) -> Callable[[Follow], Follow]:
    """Decorator that makes a function the rule of operations, of types of layers, and of functions of a user's own.

        @norton.graph.rule("cumsum", layers=[MyActivation])
        def keep(tracer, node):
            return tracer.input(node)  # each channel for itself, at its place

    A rule takes a `ChannelTracer` and the node of an operation, and returns where the channels are in what the node
    gives (`located`), or None.  A rule that is there already is replaced.

    operations: names of torch's functions and of methods of tensors, with spaces between them.  layers: types, also for
    those derived from them; layers of your own are better declared, see `norton.graph.declare`.  functions: custom
    operators of `torch.library`, and functions that call `torch.overrides.handle_torch_function`; those that do not
    are followed by the operations inside of them, and need no rule.

    joins, takes_shifted, takes_entries, gives_parts: see `norton.graph.rules.table.Rule`.  sizes: position and name of
    the argument that is a size and may follow the channels, such as `(1, "num_groups")`.
    """

    def register(follow: Follow) -> Follow:
        entry = Rule(follow, joins, takes_shifted, takes_entries, gives_parts, None if sizes is None else Sizes(*sizes))
        RULES.update(dict.fromkeys(operations.split(), entry))
        LAYER_RULES.update(dict.fromkeys(layers, entry))
        FUNCTION_RULES.update(dict.fromkeys(map(own_operation, functions), entry))
        return follow

    return register


def rule_of_layer(layer: nn.Module) -> Rule | None:
    """The rule of a layer by its type; None where there is none.  A decomposed layer writes filters as a dense does."""
    kinds = (nn.Conv2d,) if is_decomposed(layer) else type(layer).__mro__
    return next((LAYER_RULES[kind] for kind in kinds if kind in LAYER_RULES), None)


def rule_of_node(net: nn.Module, node: fx.Node) -> Rule | None:
    """The rule of a layer that a node calls, or of its function or method; None where there is none."""
    if node.op == "call_module":
        return rule_of_layer(net.get_submodule(str(node.target)))
    # A function of a user's own is not known by its name, which may be any.
    return FUNCTION_RULES.get(node.target) if node.op == "call_function" else RULES.get(name_of(node))
