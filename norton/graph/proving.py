"""A wiring proved by running the network again: after a trial cut, every operation must give what was predicted.

A record has the numbers in the code as they were (`view(-1, 32)`, `x[:, :16]`, `split(self.width)`), and cannot tell
which of them follow the widths.  So copies without values are cut at random everywhere and recorded again.  Where one
fails, gives another shape than the wiring says, computes with another number, or has its channels at other places, the
channels that reach that place have to stay.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from norton.common.errors import InputError, first_line
from norton.graph.chance import drawing
from norton.graph.channels import ChannelTracer, LocatedChannels, located_in
from norton.graph.copies import deepcopied
from norton.graph.deciding import values_decided
from norton.graph.execution import LINE, record
from norton.graph.inputs import Inputs
from norton.graph.moving import MOVES, as_located, moved
from norton.graph.nodes import (
    depending_on_inputs,
    first_argument,
    holds_tensor,
    makes_tensor,
    name_of,
    place_of,
    value_of,
)
from norton.graph.numbers import OwnNumber
from norton.graph.rules import rule_of_node
from norton.graph.slicing import SizeError, cut_
from norton.graph.stated_numbers import drop_read_, stated_numbers
from norton.graph.wiring import Wiring, positions

TRIALS = 2
_WAY_OUT = "take other rates, or leave the layers around it whole, compress_rate={LAYER: 0, '*': 0.3}"
COUNTED = "it computes with the number of channels"


class Record(NamedTuple):
    """A forward pass as it was recorded, whose channels were followed."""

    training: bool
    inputs: Inputs
    graph: fx.Graph
    way: int = 0  # in which random numbers were drawn, see `norton.graph.chance`


def prove_(net: nn.Module, tracer: ChannelTracer, records: Sequence[Record]) -> None:
    """Freeze what trial cuts of a network on the meta device disagree with, until none does."""
    for seed in range(TRIALS):
        if seed == TRIALS - 1:
            tracer.wiring.stated = stated_numbers(tracer, [one.graph for one in records])
        while keep := trial_keep(tracer.wiring, seed):
            try:
                found = _disagreed(net, tracer, records, keep)
            except SizeError as error:
                tracer.wiring.freeze(tracer.wiring.sizes.pop(error.name), f"{error.name}: it does not follow them")
                continue
            if found is None:
                break
            if not _needs_stated(net, tracer, records, keep, found[1]):
                _freeze_found(tracer, *found, keep)


def _needs_stated(
    net: nn.Module,
    tracer: ChannelTracer,
    records: Sequence[Record],
    keep: Mapping[int, Sequence[int]],
    found: "Disagreement",
) -> bool:
    """Whether a trial disagrees since the forward pass needs numbers that were taken for stated alone; drops them."""
    stated, tracer.wiring.stated = tracer.wiring.stated, {}
    needed = bool(stated) and _disagreed(net, tracer, records, keep) is None
    if needed:
        drop_read_(stated, found.node)
    tracer.wiring.stated = stated
    return needed


def _disagreed(
    net: nn.Module, tracer: ChannelTracer, records: Sequence[Record], keep: Mapping[int, Sequence[int]]
) -> tuple[fx.Graph, "Disagreement"] | None:
    cut = deepcopied(net, {})
    cut_(cut, tracer.wiring, keep)
    return next((found for one in records if (found := _tried(cut, tracer, one, keep))), None)


def check_cut(
    net: nn.Module, tracer: ChannelTracer, records: Sequence[Record], keep: Mapping[int, Sequence[int]]
) -> None:
    """Raise InputError, naming the place, where a network does not follow the very cut that is to be made.

    Trial cuts are few, and what fits in all of them may be chance.
    """
    if not keep:
        return
    try:
        found = _disagreed(net, tracer, records, keep)
    except SizeError as error:
        raise InputError(f"{error}; {_WAY_OUT}") from None
    if found is not None:
        node, reason = found[1]
        raise InputError(f"{place_of(node)}: at these widths {reason}; {_WAY_OUT}")


def _freeze_found(
    tracer: ChannelTracer, graph: fx.Graph, found: "Disagreement", keep: Mapping[int, Sequence[int]]
) -> None:
    wiring, (node, reason) = tracer.wiring, found
    before = wiring.free_filters
    places = places_like(graph, node)
    if reason == COUNTED:
        for place in places:
            _freeze_counted(tracer, place)
        if wiring.free_filters != before:
            return
    for place in places:
        freeze_at(tracer, place, reason)
    if wiring.free_filters == before:
        for place in places:
            _freeze_ahead(tracer, place, reason)
    if wiring.free_filters == before:  # nothing that is known reaches that place
        for filters in [wiring.written(layer) for axis in keep for layer in wiring.writers[axis]]:
            wiring.freeze(filters, f"{place_of(node)}: {reason}")


def _freeze_counted(tracer: ChannelTracer, node: fx.Node) -> None:
    """Keep the channels whose number a node computes with, by a size or by a number that a module holds."""
    tracer.freeze_counts(node, node.all_input_nodes)
    for number in _leaves(node.args, node.kwargs):
        for name in number.names if isinstance(number, OwnNumber) else ():
            if name in tracer.wiring.sizes:
                tracer.wiring.freeze(tracer.wiring.sizes[name], f"{place_of(node)}: it computes with {name}")


def _tried(
    cut: nn.Module, tracer: ChannelTracer, one: Record, keep: Mapping[int, Sequence[int]]
) -> tuple[fx.Graph, "Disagreement"] | None:
    error = None
    try:
        given = one.inputs.map(Tensor.clone)
        own = deepcopied(cut, {}).train(one.training)  # what one pass leaves in it, the next would find
        with drawing(one.way):
            after = record(own, given.args, given.kwargs, decided=values_decided(one.graph))
    except Exception as failure:  # whatever the network's own code raises
        after, error = failure.graph, first_line(failure)  # type: ignore[attr-defined]
    found = disagreement(tracer, one.graph, after, keep, error)
    return None if found is None else (one.graph, found)


class Disagreement(NamedTuple):
    """Where a cut network does something else than was predicted, and what."""

    node: fx.Node  # of the record before the cut
    reason: str


def trial_keep(wiring: Wiring, seed: int = 0) -> dict[int, list[int]]:
    """Axis → units of it that a trial keeps, at random, of every axis that can be cut alone.

    The first trial keeps half of them or more; others any number, so that numbers in the code do not fit by chance.
    """
    generator = np.random.default_rng(seed)
    frozen, bound = wiring.frozen, {axis for edge in wiring.shifts for axis in edge}
    widths = {axis: wiring.width(axis) for axis in wiring.writers if axis not in frozen and axis not in bound}
    return {
        axis: sorted(
            generator.permutation(width)[: generator.integers((width + 1) // 2 if seed == 0 else 1, width)].tolist()
        )
        for axis, width in widths.items()
        if width > 1
    }


def disagreement(
    tracer: ChannelTracer, before: fx.Graph, after: fx.Graph, keep: Mapping[int, Sequence[int]], error: str | None
) -> Disagreement | None:
    """The first place where the record of a cut network is not what the wiring of the whole one predicts.

    after: up to where it failed, if it did, with that error.
    """
    old, new = list(before.nodes), list(after.nodes)
    computed = depending_on_inputs(before)
    for node, other in zip(old, new, strict=False):
        if (node.op, name_of(node)) != (other.op, name_of(other)):
            return Disagreement(node, "its code takes another way when the number of channels changes")
        if node.op == "get_attr" and not node.target and _is_another(value_of(node), value_of(other)):
            return Disagreement(node, COUNTED)
        if (node in computed or makes_tensor(node)) and (reason := _differs(tracer, node, other, keep)):
            return Disagreement(node, reason)
        # Of parameters and numbers alone, as a weight is that the code scales by the number of its inputs.
        scales = node.op == "call_method" and holds_tensor(value_of(node)) and not _moves(node)
        if (
            node not in computed
            and (scales or _takes_the_same(node, other))
            and _has_other_numbers(tracer, node, other, keep)
        ):
            return Disagreement(node, COUNTED)
    if error is not None or len(new) < len(old):
        left = (node for node in old[len(new) :] if node.op.startswith("call") and holds_tensor(value_of(node)))
        failed = next(left, old[-1])  # parameters and numbers are recorded when an operation takes them
        return Disagreement(failed, f"it does not follow the number of channels ({error or 'its code ends there'})")
    return None


def _differs(tracer: ChannelTracer, node: fx.Node, other: fx.Node, keep: Mapping[int, Sequence[int]]) -> str | None:
    value, now = value_of(node), value_of(other)
    if not holds_tensor(value):
        return None
    if not _moves(node) and _computes_with_other_numbers(tracer, node, other):
        return COUNTED
    if not isinstance(value, Tensor):
        return None  # parts, which are nodes of their own
    expected, x = list(value.shape), tracer.at(node)
    if x is not None:
        if x.shifted:
            return None
        for dim in x.dims:
            expected[dim] = len(positions(tracer.wiring, x.ids.flatten().numpy(), keep))
    if list(now.shape) != expected:
        return "it does not follow the number of channels"
    if _moves(node) and _has_other_numbers(tracer, node, other, keep):
        return COUNTED
    return _misplaced(tracer, node, other, keep) if _moves(node) else None


def _moves(node: fx.Node) -> bool:
    """Whether a node moves numbers, or assigns some to a part of others."""
    return node.op == "call_method" and name_of(node) in (*MOVES, "setitem")


def _takes_the_same(node: fx.Node, other: fx.Node) -> bool:
    """Whether two operations, of parameters and numbers, take tensors of the same shapes, and give such."""
    pairs = zip([node, *node.all_input_nodes], [other, *other.all_input_nodes], strict=False)
    values = [(value_of(one), value_of(now)) for one, now in pairs if isinstance(value_of(one), Tensor)]
    return node.op == "call_method" and len(values) > 1 and all(one.shape == now.shape for one, now in values)


def _has_other_numbers(tracer: ChannelTracer, node: fx.Node, other: fx.Node, keep: Mapping[int, Sequence[int]]) -> bool:
    """Whether other numbers let a cut network compute something else, or move what stands at other places."""
    if not _moves(node):
        return _computes_with_other_numbers(tracer, node, other)
    of_value = name_of(node) == "setitem" and _computes_with_other_numbers(tracer, node, other)
    return of_value or _takes_other_places(tracer, node, other, keep)


def _misplaced(tracer: ChannelTracer, node: fx.Node, other: fx.Node, keep: Mapping[int, Sequence[int]]) -> str | None:
    """Whether a cut network moves other channels to a place than was predicted, though as many."""
    if (x := _channels_at_end(tracer, node)) is None or not x.dims:
        return None
    wiring, before = tracer.wiring, dict(zip(other.all_input_nodes, node.all_input_nodes, strict=False))

    def left(found: LocatedChannels | None) -> Tensor | None:
        if found is None:
            return None
        channels = found.ids.flatten().numpy()
        names = np.where(wiring.axis_at(channels) < 0, -1, wiring.representatives(channels))
        return _kept(tracer, torch.from_numpy(names).view(found.ids.shape), found, keep)

    if any(isinstance(tracer.located.get(arg), list) or tracer.is_read_by(arg, node) for arg in node.all_input_nodes):
        return None  # several tensors, or places in a buffer, which has no values here
    found = moved(other, lambda arg: left(tracer.at(before[arg])), None)
    expected = left(x)
    if expected is not None and isinstance(found, Tensor) and not bool(((found == expected) | (found < 0)).all()):
        return "its channels do not stand where they should when some are cut"
    return None


def _channels_at_end(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """The channels of what an operation that moves some gives; of an assignment, of the part that is assigned to."""
    if name_of(node) != "setitem" or tracer.at(node) is None:
        return tracer.at(node)
    found = as_located(moved(node, lambda arg: None if (x := tracer.at(arg)) is None else x.ids, None))
    return found if isinstance(found, LocatedChannels) else None


def _kept(tracer: ChannelTracer, ids: Tensor, x: LocatedChannels | None, keep: Mapping[int, Sequence[int]]) -> Tensor:
    """The part of a tensor that stays, whose channels are those of x."""
    if x is None:
        return ids
    for dim in x.dims:
        stay = positions(tracer.wiring, x.ids.flatten().numpy(), keep)
        ids = ids.index_select(dim, torch.tensor(stay))
    return ids


def _takes_other_places(
    tracer: ChannelTracer, node: fx.Node, other: fx.Node, keep: Mapping[int, Sequence[int]]
) -> bool:
    """Whether other numbers let a cut network move what stands at other rows, columns and images.

    Each of these has a number of its own, the same for all channels, which whole and cut network move alike.
    """
    given = [*_leaves(node.args, node.kwargs)]
    if given == [*_leaves(other.args, other.kwargs)]:
        return False
    values = [value_of(arg) for arg in node.all_input_nodes]
    if any(holds_tensor(value) and not isinstance(value, Tensor) for value in (value_of(node), *values)):
        return True  # several tensors
    if any(isinstance(value, Tensor) and value.dtype == torch.bool for value in values):
        return True  # perhaps a mask, which has no values here
    before = dict(zip(other.all_input_nodes, node.all_input_nodes, strict=False))

    def numbered(arg: fx.Node) -> Tensor | None:
        value, x = value_of(arg), tracer.at(arg)
        if name_of(node) in ("getitem", "setitem") and arg is not first_argument(node):
            return None  # an index
        shape = [1 if x is not None and dim in x.dims else size for dim, size in enumerate(value.shape)]
        return torch.arange(math.prod(shape)).view(shape)

    expected = moved(node, numbered, None)
    found = moved(other, lambda arg: numbered(before[arg]), None)
    return not torch.equal(_kept(tracer, expected, _channels_at_end(tracer, node), keep), found)


def _computes_with_other_numbers(tracer: ChannelTracer, node: fx.Node, other: fx.Node) -> bool:
    """Whether anything that two operations are given differs, but for tensors, and for sizes that may follow."""
    rule = rule_of_node(tracer.net, node)
    sizes = None if rule is None else rule.sizes
    if sizes is None or not (sizes.shows or located_in(tracer.located.get(node))):
        return [*_leaves(node.args, node.kwargs)] != [*_leaves(other.args, other.kwargs)]
    return [*_leaves(*sizes.others(node.args, node.kwargs))] != [*_leaves(*sizes.others(other.args, other.kwargs))]


def _leaves(args: tuple, kwargs: Mapping[str, Any]) -> Iterator[Any]:
    """All that an operation is given, one after the other; None for tensors."""
    for value in tree_leaves(fx.node.map_arg((args, dict(kwargs)), _number_of)):
        if isinstance(value, slice):
            yield from (value.start, value.stop, value.step)
        else:
            yield "nan" if value != value else value  # the only number that is not equal to itself


def _is_another(made: Tensor, now: Tensor) -> bool:
    """Whether a tensor that code made where no record shows it is another one: in size, or in its numbers."""
    if made.shape != now.shape:
        return True
    return not made.is_meta and not now.is_meta and not torch.equal(made, now)


def _number_of(arg: fx.Node) -> Any:
    value = value_of(arg)
    return None if holds_tensor(value) else value


def places_like(graph: fx.Graph, place: fx.Node) -> list[fx.Node]:
    """The nodes of the same operation on the same line of code, such as in all blocks of a kind."""
    return [n for n in graph.nodes if n.meta.get(LINE) == place.meta.get(LINE) and name_of(n) == name_of(place)]


def freeze_at(tracer: ChannelTracer, node: fx.Node, reason: str) -> None:
    """Keep the channels that reach a node: of its arguments, or of what these are computed of."""
    tracer.freeze_arguments(node, reason)
    for x in located_in(tracer.located.get(node)):
        tracer.freeze(x, node, reason)
    behind, seen, known = [*node.all_input_nodes], set(), False
    while behind:
        arg = behind.pop()
        if arg in seen:
            continue
        seen.add(arg)
        if found := located_in(tracer.located.get(arg)):
            known = True
            for x in found:
                tracer.freeze(x, node, reason)
        else:
            behind += arg.all_input_nodes
    if not known:
        _freeze_ahead(tracer, node, reason)


def _freeze_ahead(tracer: ChannelTracer, node: fx.Node, reason: str) -> None:
    """Keep the channels that what a node gives meets first."""
    ahead, seen = [node], set()
    while ahead:
        for user in ahead.pop().users:
            for x in (found := tracer.arguments(user)):
                tracer.freeze(x, node, reason)
            if not found and user not in seen:
                seen.add(user)
                ahead.append(user)
