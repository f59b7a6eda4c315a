"""Which layer alone takes what a layer gives, in a recorded forward pass, and whether that may hang on the input."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, fx, nn

from norton.common.errors import InputError
from norton.deployment.layouts import Reshaping
from norton.graph.copies import copied
from norton.graph.execution import record
from norton.graph.inputs import Inputs
from norton.graph.meta import on_meta
from norton.graph.nodes import DECIDED, READ

_OF_SIZES = {"len", "numel", "nelement", "iter"}  # what Python may read of a tensor without asking for its values


class FoldedNorm(nn.Identity):
    """Stands where a BatchNorm was, for the code that calls it; what it did, the layer before it does."""

    apart = False  # whether what it gives is another tensor than what it takes, which recording asks for

    def forward(self, input: Tensor) -> Tensor:
        return input.view_as(input) if self.apart else input


def recorded(net: nn.Module, inputs: Inputs, whole: Iterable[str] = ()) -> fx.Graph | None:
    """A forward pass as it is recorded, without values where that suffices.

    whole: modules that count as one operation, whatever they consist of.  None for a network that cannot be recorded,
    or whose code reads values, by which it may decide what to compute.
    """
    try:
        given = inputs.to("meta")
        with Reshaping():
            return record(_to_record_(on_meta(net), whole), given.args, given.kwargs)
    except Exception:  # whatever the network's own code raises without values
        pass
    try:
        given = inputs.map(Tensor.clone)
        with Reshaping():
            graph = record(_to_record_(copied(net), whole), given.args, given.kwargs)
    except Exception:  # or with sizes that remember where they are from
        return None
    return None if any(node.meta.get(READ, set()) - _OF_SIZES for node in graph.nodes) else graph


def _to_record_(net: nn.Module, whole: Iterable[str]) -> nn.Module:
    for name in whole:
        net.get_submodule(name).traced_whole = True  # type: ignore[assignment]
    for layer in nn.Module.modules(net):
        if isinstance(layer, FoldedNorm):
            layer.apart = layer.traced_whole = True
    return net


def decides_by_sizes(graph: fx.Graph) -> bool:
    """Whether the forward pass asked for the sizes of what it computes of its input, in an `if` or the like."""
    computed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
    return any(node.meta.get(DECIDED) or node.meta.get(READ) for node in computed)


def calls(graph: fx.Graph) -> Iterator[fx.Node]:
    return (node for node in graph.nodes if node.op == "call_module")


def takers(node: fx.Node) -> list[fx.Node]:
    """The nodes that compute with what a node gives; asking for its size is nothing of that kind."""
    return [user for user in node.users if (user.op, user.target) != ("call_method", "size")]


def followers(graph: fx.Graph) -> dict[str, str]:
    """Layer → the layer that takes its output directly and alone, in every call of it."""
    found: dict[str, set[str | None]] = defaultdict(set)
    for node in calls(graph):
        users = takers(node)
        alone = len(users) == 1 and users[0].op == "call_module" and users[0].all_input_nodes == [node]
        found[str(node.target)].add(str(users[0].target) if alone else None)
    return {layer: only for layer, (only, *others) in found.items() if only is not None and not others}


def pairs_in(graph: fx.Graph) -> dict[str, str]:
    """The `followers` that take nothing else in any call."""
    taken: dict[str, set[str | None]] = defaultdict(set)
    for node in calls(graph):
        for arg in node.all_input_nodes:
            taken[str(node.target)].add(str(arg.target) if arg.op == "call_module" else None)
    return {layer: then for layer, then in followers(graph).items() if taken[then] == {layer}}


def check_follow(net: nn.Module, inputs: Inputs, folded: Mapping[str, str], joined: Mapping[str, str]) -> None:
    """Raise InputError where layers do not follow each other on inputs of these sizes.

    folded: layer → what is left of the norm that must take its output, and nothing else.  joined: layer → the layer
    that alone must take its output.
    """
    if (graph := recorded(net, inputs, {*folded, *joined, *joined.values()})) is None:
        raise InputError(f"{type(net).__name__} cannot be recorded on inputs of {inputs.shown()}")
    called = {str(node.target) for node in calls(graph)}
    pairs, then = pairs_in(graph), followers(graph)
    wrong = [layer for layer, norm in folded.items() if {layer, norm} & called and pairs.get(layer) != norm]
    for layer, relu in joined.items():
        last = folded.get(layer, layer)
        wrong += [layer] if last in called and then.get(last) != relu else []
    if wrong:
        raise InputError(
            f"{type(net).__name__} takes another way for inputs of {inputs.shown()} ({wrong[0]} "
            "is used otherwise) than for those it was deployed with; deploy it again with an example of that size"
        )
