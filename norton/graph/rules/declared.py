"""Layers of a user's own, whose channels are declared from outside: one entry in the tables for all they need."""

from collections.abc import Mapping

from torch import Tensor, fx, nn

from norton.common.errors import InputError
from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, LocatedChannels, located
from norton.graph.declarations import (
    DECLARED,
    Declaration,
    Places,
    declaration_of,
    filters_of_declared,
    holder,
    value_at,
)
from norton.graph.nodes import first_argument, value_of
from norton.graph.rules.table import rule
from norton.graph.slicing import cut_inputs_, cut_outputs_, select


def declare(
    kind: type[nn.Module],
    *,
    reads: Places | None = None,
    writes: Places | None = None,
    passes: Places | None = None,
    dim: int = 1,
) -> None:
    """Say what the layers of a type of your own do with channels, so that they are pruned as torch's own are.

        norton.graph.declare(MyConv, reads={"weight": 1, "inputs": None}, writes={"weight": 0, "bias": 0})

    Such a layer, and each derived from it, counts as one operation on its first argument.  Each mapping is from the
    name of a tensor of the layer (a parameter or buffer, `fc.weight` for one of a module in it) to the dimension that
    has an entry per channel, or from the name of a whole number that counts the channels to None.  Tensors that are
    None are passed over.

    reads: what goes with the channels that the layer mixes.  writes: with those that it gives, which are filters of
    its own.  passes: with channels that stay what they are, as in a BatchNorm.  dim: where the channels are in its
    argument and in what it gives.  A layer that reads and writes nothing keeps the channels before it whole.

    A declaration is believed: after a trial cut the layer must run and give the right shapes, but which numbers it
    computes is not looked at.  Declaring a type again replaces what was declared.  `decompose` leaves them whole.

    Raises InputError for what cannot be; names and dimensions are checked when a network is traced.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(f"declare takes a type of layers, such as MyConv, and not {kind!r}")
    declaration = Declaration(reads or {}, writes or {}, passes or {}, dim)
    _check(kind.__name__, declaration)
    DECLARED[kind] = declaration
    rule(layers=[kind], joins=True)(follow)
    cut_inputs_.register(kind, _keep_inputs)
    cut_outputs_.register(kind, _keep_outputs)


def _check(kind: str, declaration: Declaration) -> None:
    """What can be told without a layer of that type."""
    sides = {"reads": declaration.reads, "writes": declaration.writes, "passes": declaration.passes}
    for side, places in sides.items():
        if not isinstance(places, Mapping):
            raise InputError(f"{kind}: {side} is {places!r}; give names and dimensions, such as {{'weight': 0}}")
        for name, dim in places.items():
            if not isinstance(name, str) or not (dim is None or type(dim) is int):
                raise InputError(f"{kind}: {side} has {name!r}: {dim!r}; give a dimension, or None for a number")
    if declaration.passes and (declaration.reads or declaration.writes):
        raise InputError(f"{kind}: a layer either passes channels, or reads and writes them; declare one of both")
    if not any(sides.values()):
        raise InputError(f"{kind}: declare what its layers read and write, or what they pass")
    if declaration.writes and declaration.main is None:
        raise InputError(f"{kind}: writes names no tensor with a filter per channel; give one, such as {{'weight': 0}}")
    twice = [
        name
        for name, dim in declaration.reads.items()
        if name in declaration.writes and declaration.writes[name] == dim
    ]
    if twice:
        raise InputError(f"{kind}: {twice[0]} has what it reads and what it writes in the same place; declare two")
    if type(declaration.dim) is not int:
        raise InputError(f"{kind}: dim is {declaration.dim!r}; give the dimension of the channels, such as 1 or -1")


def check_declared(net: nn.Module) -> None:
    """Raise InputError, naming the layer, where a declaration names what a layer of a network does not have."""
    for path, layer in net.named_modules():
        if (declaration := declaration_of(layer)) is None:
            continue
        place = f"{path or 'the network'} ({type(layer).__name__})"
        for places in (declaration.reads, declaration.writes, declaration.passes):
            for name, dim in places.items():
                _check_entry(place, layer, name, dim)
        if declaration.main is not None and value_at(layer, declaration.main) is None:
            raise InputError(f"{place}: its filters are declared to be in {declaration.main}, which is None")


def _check_entry(place: str, layer: nn.Module, name: str, dim: int | None) -> None:
    try:
        value = value_at(layer, name)
    except AttributeError:
        raise InputError(f"{place}: declared with {name}, which it does not have") from None
    if dim is None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{place}: {name} is declared as a whole number, and is a {type(value).__name__}")
    elif value is not None:
        if not isinstance(value, Tensor):
            raise InputError(f"{place}: {name} is declared as a tensor, and is a {type(value).__name__}; give None")
        if not -value.dim() <= dim < value.dim():
            raise InputError(f"{place}: {name} is declared with channels in dimension {dim}, and has {value.dim()}")


def follow(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """What was declared of a layer."""
    layer, name, value = tracer.layer(node), str(node.target), value_of(first_argument(node))
    declaration = declaration_of(layer)
    assert declaration is not None
    for other in tracer.arguments(node)[0 if tracer.input(node) is None else 1 :]:
        tracer.freeze(other, node, "its declaration says nothing of its other inputs")
    x = _read(tracer, node, value, declaration)
    if x is None:
        return tracer.unknown(node, "its channels are elsewhere than declared")
    if (problem := _misfit(layer, declaration, len(x))) is not None:
        return tracer.unknown(node, problem)
    return _declared(tracer, node, name, x, declaration)


def _read(tracer: ChannelTracer, node: fx.Node, value: Tensor, declaration: Declaration) -> Channels | None:
    """The channels that a layer is called with; None where they are not in the dimension that was declared."""
    x = tracer.input(node)
    if not -value.dim() <= declaration.dim < value.dim() or (x is not None and x.shifted):
        return None
    size = value.shape[declaration.dim]
    return tracer.wiring.input(size) if x is None else x.along(declaration.dim, size)


def _misfit(layer: nn.Module, declaration: Declaration, read: int) -> str | None:
    """Why a layer cannot be cut as declared: its tensors have another number of entries than there are channels."""
    written = None if declaration.main is None else filters_of_declared(layer, declaration).shape[0]
    for places, count in ((declaration.reads, read), (declaration.passes, read), (declaration.writes, written)):
        for name, dim in places.items():
            value = value_at(layer, name)
            found = value.shape[dim] if isinstance(value, Tensor) and dim is not None else value
            if value is not None and found != count:
                return f"its {name} is declared with an entry per channel, and has {found} for {count}"
    return None


def _declared(
    tracer: ChannelTracer, node: fx.Node, name: str, x: Channels, declaration: Declaration
) -> LocatedChannels | None:
    given = value_of(node)
    if declaration.passes:
        found = located(x, declaration.dim, given.dim())
        return tracer.declare(node, found, tracer.wiring.norm, name, x)
    if not declaration.reads:
        tracer.freeze(tracer.input(node), node, "its declaration says nothing of what it reads")
    if not declaration.writes:
        tracer.declare(node, located(x, 0, 1), tracer.wiring.read, name, x)
        return None
    read = x if declaration.reads else tracer.wiring.input(len(x))
    tracer.declare(node, located(read, 0, 1), tracer.wiring.layer, name, read)
    return located(tracer.wiring.written(name), declaration.dim, given.dim())


def _keep_inputs(layer: nn.Module, kept: Tensor) -> None:
    declaration = declaration_of(layer)
    assert declaration is not None
    _keep(layer, declaration.passes or declaration.reads, kept)


def _keep_outputs(layer: nn.Module, kept: Tensor) -> None:
    declaration = declaration_of(layer)
    assert declaration is not None
    _keep(layer, declaration.writes, kept)


def _keep(layer: nn.Module, places: Places, kept: Tensor) -> None:
    """Of all that was declared keep these channels, in this order."""
    for name, dim in places.items():
        owner, key = holder(layer, name)
        value = getattr(owner, key)
        if dim is None:
            setattr(owner, key, len(kept))
        elif value is not None:
            setattr(owner, key, select(value, kept, dim))
