"""The channel axes of a network that declares none, found by tracing its forward pass.

The network is run, and its operations are recorded (`norton.graph.execution`); following the record with symbolic
channels, by a rule per operation (`norton.graph.rules`), says to `Wiring` what a model would declare by hand.  What no
rule knows freezes the axes that reach it, with a reason; then a trial cut is run (`norton.graph.proving`), and freezes
what does not follow it.  So nothing is ever cut that another layer still counts on.  (Torch-Pruning's
dependency graph was the alternative: it needs a forward pass with gradients, and its groups would have to be translated
into ours, which recorded plans replay, so that it saves little.)
"""

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.common.errors import InputError, first_line
from norton.graph.axes import Channels
from norton.graph.chance import WAYS, drawing, freeze_by_chance
from norton.graph.channels import ChannelTracer, Located, located, located_in
from norton.graph.copies import copied, deepcopied
from norton.graph.deciding import decides_by_data, freeze_undecided
from norton.graph.declarations import declaration_of
from norton.graph.execution import record
from norton.graph.inputs import Example, Inputs, candidate_inputs
from norton.graph.layers import TRANSPOSED_LAYERS, WRITING_LAYERS
from norton.graph.meta import at_inputs, needs_values, on_meta
from norton.graph.nodes import DECIDED, UNSEEN, first_argument, holds_tensor, name_of, value_of
from norton.graph.numbers import mark_numbers_
from norton.graph.proving import Record, check_cut, prove_
from norton.graph.rules import RULES, Rule, check_declared, counted_channels, rule_of_node
from norton.graph.slicing import freeze_obstacles
from norton.graph.uncalled import freeze_uncalled
from norton.graph.wiring import Wiring

# Where a rule of ours fails, channels are kept whole; tests let it raise, since then the rule is wrong or too narrow.
RAISES_FAULTS = False


def trace_wiring(net: nn.Module, example: Example | None = None) -> Wiring:
    """The channel axes found by tracing the forward pass of a network.

    example: an input (N, channels, height, width) or its size (channels, height, width); a tuple of several inputs, or
    a dict of arguments by name, of any tensors and other objects; what is left out has its default.  By default the
    network's `example_input_array` or `input_size`, else the first of some usual sizes that the network takes.  The
    network is traced in training mode, with its auxiliary heads, and in evaluation mode where that differs; it is not
    changed, and nothing is computed unless it needs values.

    A network that decides by sizes is traced at each of them that it takes, so that say the one that you use.  One that
    decides by values needs an example of real data, and is cut only inside of the modules whose forward pass decides
    nothing, see `norton.graph.deciding`.

    Raises InputError, naming the place, for a network that does not take the example, needs values and has none, or has
    no parameters.
    """
    if next(net.parameters(), None) is None:
        raise InputError(f"{net._get_name()} has no parameters, so there is nothing to cut; pass the network around it")
    check_declared(net)
    made, records = recorded(net, example)
    tracer = _most_free_of(net, made, records)
    tracer.wiring.proof = partial(check_cut, made, tracer, records)
    return tracer.wiring


def _most_free_of(net: nn.Module, made: nn.Module, records: Sequence[Record]) -> ChannelTracer:
    """What follows from records and is proved, with doubtful places the way round that leaves most to cut."""

    def followed(other_way: Set[Any]) -> ChannelTracer:
        return _followed(net, records, other_way)

    def proved(other_way: Set[Any]) -> ChannelTracer:
        tracer = followed(other_way)
        prove_(made, tracer, records)
        return tracer

    hoped = _most_free(followed(set()), followed)  # proving takes longer than following
    return _most_free(proved(hoped.wiring.other_way), proved)


def _most_free(tracer: ChannelTracer, follow: Callable[[Set[Any]], ChannelTracer]) -> ChannelTracer:
    """Doubtful places the other way round, one after the other, where that leaves more to cut."""
    for place in list(tracer.wiring.doubtful):
        if not tracer.wiring.is_free:
            other = follow(tracer.wiring.other_way ^ {place})
            if other.wiring.free_filters > tracer.wiring.free_filters:
                tracer = other
    return tracer


def _followed(net: nn.Module, records: Sequence[Record], other_way: Set[Any]) -> ChannelTracer:
    """What follows from records, not proved yet."""
    tracer = ChannelTracer(net, other_way)
    for one in records:
        follow(tracer, one.graph)
        freeze_undecided(tracer, one.graph)
    for one in {(one.training, id(one.inputs)): one for one in records}.values():
        alike = [other.graph for other in records if other.training == one.training and other.inputs is one.inputs]
        freeze_by_chance(tracer, alike)
    freeze_uncalled(tracer, [one.graph for one in records])
    freeze_obstacles(net, tracer.finished())
    return tracer


def recorded(net: nn.Module, example: Example | None) -> tuple[nn.Module, list[Record]]:
    """A copy of a network and what it computes: on the meta device, or with values where that is not enough.

    Values of images whose size alone is known are made up, for networks that need values of their own tensors, such as
    the strides of a detector's maps.
    """
    candidates = candidate_inputs(net, example)
    made = mark_numbers_(on_meta(net))
    try:
        return made, _in_both_modes(made, [inputs.to("meta") for inputs in candidates])
    except InputError as error:
        made_up = any(x.is_meta for inputs in candidates for x in inputs.tensors)
        if made_up and not needs_values(error):
            raise
        failed = error
    if not made_up and any(x.isnan().any() for inputs in candidates for x in inputs.tensors):
        raise InputError("example= has NaN in it, and the forward pass decides by values; give real data without")
    made, device = mark_numbers_(copied(net)), next(net.parameters()).device
    records = _in_both_modes(made, [inputs.map(_with_values).to(device) for inputs in candidates])
    if made_up and any(decides_by_data(one.graph) for one in records):
        raise failed
    return made, records


def _with_values(x: Tensor) -> Tensor:
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) if x.is_meta else x


def _in_both_modes(net: nn.Module, candidates: Sequence[Inputs]) -> list[Record]:
    """In training mode, and in evaluation mode where that differs.

    In evaluation mode alone for a network that takes the candidates in no other, such as a detector whose training
    needs targets, if all of its layers are called then.
    """
    found: dict[str, Record] = {}
    failed = None
    for training in (True, False):
        try:
            records = records_at(net.train(training), candidates)
        except InputError as error:
            if failed is not None or not training:
                raise error if failed is None or needs_values(error) else failed from None
            failed = error
            continue
        if failed is not None and not _calls_all_layers(net, records):
            raise failed
        for one in records:
            found.setdefault(str(one.graph), one)
        candidates = list({id(one.inputs): one.inputs for one in records}.values())
    return list(found.values())


def _calls_all_layers(net: nn.Module, records: Sequence[Record]) -> bool:
    called = {str(node.target) for one in records for node in one.graph.nodes if node.op == "call_module"}
    called |= {
        str(node.target).rpartition(".")[0] for one in records for node in one.graph.nodes if node.op == "get_attr"
    }
    return all(name in called for name, layer in net.named_modules() if layer._parameters)


def records_at(net: nn.Module, candidates: Sequence[Inputs]) -> list[Record]:
    """What a network computes of the first of some inputs that it takes, which are on its device.

    Of all that it takes, where its code decides by sizes.  Raises InputError, naming the place, where it takes none.
    """

    def run(inputs: Inputs) -> list[Record]:
        drawn: dict[str, Record] = {}
        for way in range(WAYS):
            # On copies, since a network may change its tensors and what it holds, such as anchors that it makes once.
            given = inputs.map(Tensor.clone)
            with drawing(way) as draws:
                graph = record(deepcopied(net, {}), given.args, given.kwargs)
            drawn.setdefault(str(graph), Record(net.training, inputs, graph, way))
            if not draws.used:
                break
        return list(drawn.values())

    found: list[Record] = []
    for _, several in at_inputs(net, candidates, run):
        found += several
        if not any(node.meta.get(DECIDED) for one in several for node in one.graph.nodes):
            break
    return found


def follow(tracer: ChannelTracer, graph: fx.Graph) -> None:
    """Follow channels through a graph whose nodes hold what they compute."""
    for node in graph.nodes:
        try:
            tracer.located[node] = _VISITS[node.op](tracer, node)
        except Exception:  # arguments in a form that nobody thought of
            if RAISES_FAULTS:
                raise
            tracer.located[node] = tracer.unknown(node)
        if node.meta.get(DECIDED):
            tracer.freeze_counts(node, [node])
    tracer.check_tensors(graph)


def _visit_input(tracer: ChannelTracer, node: fx.Node) -> Located:
    value = value_of(node)
    if not isinstance(value, Tensor) or value.dim() < 2:
        return None
    return located(tracer.wiring.input(value.shape[1]), 1, value.dim())


def _visit_attribute(tracer: ChannelTracer, node: fx.Node) -> Located:
    """A parameter or buffer outside of layers may have an entry per channel: then it is cut with them."""
    name, value = str(node.target), value_of(node)
    owner, _, key = name.rpartition(".")
    if (filters := _filters_of(tracer, owner, key)) is not None:
        return located(filters, 0, value.dim())
    long = [dim for dim, size in enumerate(value.shape) if size > 1] if name in tracer.free_tensors else []
    if not long or not value.is_floating_point() or all(_takes_entries(user, node) for user in node.users):
        return None  # which dimension has the channels, if any, shows what it meets: see the rules
    if len(long) > 1:  # perhaps the last one, as in a table with a column for each head
        place = (type(tracer.net.get_submodule(owner)).__qualname__, key)
        tracer.wiring.doubtful[place] = None
        if place not in tracer.wiring.other_way:
            return None
    channels = tracer.wiring.unwritten(value.shape[long[-1]])
    return tracer.declare_entries(node, located(channels, long[-1], value.dim()), channels, node, long[-1])


def _takes_entries(user: fx.Node, tensor: fx.Node) -> bool:
    """Whether the rule of a node takes a parameter or buffer, beside what it computes with it, just as it is."""
    rule = RULES.get(name_of(user))
    return rule is not None and rule.takes_entries and first_argument(user) is not tensor


def _filters_of(tracer: ChannelTracer, owner: str, key: str) -> Channels | None:
    """The filters that the weight or bias of a layer has along its first dimension."""
    layer = tracer.net.get_submodule(owner)
    plain = isinstance(layer, WRITING_LAYERS) and not isinstance(layer, TRANSPOSED_LAYERS)
    if (
        declaration_of(layer) is not None
        or not plain
        or key not in ("weight", "bias")
        or key not in layer._parameters
        or owner in tracer.kept_whole
    ):
        return None
    return tracer.wiring.written_by(owner)


def _visit_output(tracer: ChannelTracer, node: fx.Node) -> Located:
    for arg in node.all_input_nodes:
        for x in located_in(tracer.located[arg]):
            if arg.meta.get(UNSEEN):
                tracer.freeze(x, arg, "no operation that is seen takes what it gives, so that something unseen may")
            else:
                tracer.wiring.output(x.ids.flatten().numpy())
    return None


def _visit_function(tracer: ChannelTracer, node: fx.Node) -> Located:
    """A computation with numbers, or a function that torch lets through as one operation."""
    if getattr(node.target, "crops_or_pads", False) and (x := tracer.input(node)):
        return x._replace(shifted=True)
    return _apply(tracer, node, rule_of_node(tracer.net, node))


def _visit_method(tracer: ChannelTracer, node: fx.Node) -> Located:
    return _apply(tracer, node, rule_of_node(tracer.net, node))


def _visit_layer(tracer: ChannelTracer, node: fx.Node) -> Located:
    rule = rule_of_node(tracer.net, node)
    return tracer.unknown(node) if rule is None else _apply(tracer, node, rule)


_VISITS = {
    "placeholder": _visit_input,
    "get_attr": _visit_attribute,
    "output": _visit_output,
    "call_function": _visit_function,
    "call_method": _visit_method,
    "call_module": _visit_layer,
}


def _apply(tracer: ChannelTracer, node: fx.Node, rule: Rule | None) -> Located:
    """What a rule makes of a node; whatever has no rule freezes what it takes."""
    value = value_of(node)
    if not holds_tensor(value):
        if (counted := counted_channels(tracer, node)) is not None:
            tracer.counts[node] = counted
        return None
    tensors = sum(isinstance(value_of(arg), Tensor) for arg in node.all_input_nodes)
    shifted = any(x.shifted for x in tracer.arguments(node))
    if (
        rule is None
        or not (isinstance(value, Tensor) or rule.gives_parts)
        or (tensors > 1 and not rule.joins)
        or (shifted and not rule.takes_shifted)
    ):
        return tracer.unknown(node)
    if rule.follow.__module__.startswith("norton."):
        return rule.follow(tracer, node)
    try:
        return rule.follow(tracer, node)
    except Exception as error:  # whatever a rule of a user's own raises
        return tracer.unknown(node, f"its rule {rule.follow.__name__} fails: {first_line(error)}")
