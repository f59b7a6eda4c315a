"""Products of tensors with each other, as attention has them."""

from typing import Any, cast

import torch
from torch import fx, nn

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer, Located, LocatedChannels, compressed
from norton.graph.nodes import argument, first_argument, name_of, value_of
from norton.graph.rules.arithmetic import lifted
from norton.graph.rules.table import rule


@rule("matmul bmm mm", joins=True)
def multiply(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """(..., m, k) times (..., k, n): over channels it adds up, to which those that went add nothing."""
    first, second = first_argument(node), argument(node, 1, "mat2", argument(node, 1, "other"))
    x, y = tracer.at(first), tracer.at(second)
    if x is None and y is None:
        return None
    if min(value_of(first).dim(), value_of(second).dim()) < 2:
        return tracer.unknown(node, "it multiplies with a vector")
    dims = value_of(node).dim()
    return product(tracer, node, *(one and lifted(one, dims) for one in (x, y)))


def product(
    tracer: ChannelTracer, node: fx.Node, x: LocatedChannels | None, y: LocatedChannels | None
) -> LocatedChannels | None:
    """The same by the channels of both sides, None where they have none."""
    dims = value_of(node).dim()
    rows, columns = _split(x, dims - 1), _split(y, dims - 2)
    if rows.inner is None or columns.inner is None:
        for side, own in ((rows, x), (columns, y)):
            if side.inner is not None:  # a matrix that the other side may have made of channels, each with each
                tracer.freeze(own, node, "it multiplies channels with what has no channels there")
    else:
        ids, others = torch.broadcast_tensors(rows.inner, columns.inner)
        tracer.declare(node, LocatedChannels(ids), tracer.wiring.add, ids.flatten().numpy(), others.flatten().numpy())
    outer = [part for part in (rows.outer, columns.outer) if part is not None]
    if not outer:
        return None
    if len(outer) == 1:
        return LocatedChannels(outer[0])
    ids, others = (compressed(part) for part in torch.broadcast_tensors(*outer))
    found = LocatedChannels(ids if ids.numel() >= others.numel() else others)
    if len(found.dims) > 1 or ids.shape != others.shape:
        other = others if found.ids is ids else ids
        tracer.freeze(LocatedChannels(other), node, "it multiplies channels with other channels, each with each")
        return found
    return tracer.declare(node, found, tracer.wiring.add, ids.flatten().numpy(), others.flatten().numpy())


class _Sides:
    """Ids of a factor: over which its product adds up (`inner`), and the others (`outer`); None where it has none."""

    def __init__(self, inner: Any, outer: Any):
        self.inner, self.outer = inner, outer


def _split(x: LocatedChannels | None, inner: int) -> _Sides:
    if x is None:
        return _Sides(None, None)
    if inner in x.dims:
        return _Sides(x.ids.transpose(inner, -1), None)
    return _Sides(None, x.ids)


@rule("scaled_dot_product_attention", joins=True)
def attend(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """Attention of queries, keys and values (..., heads, positions, features); heads go as wholes."""
    query, key, value = (argument(node, place, name) for place, name in enumerate(("query", "key", "value")))
    mask, dims = argument(node, 3, "attn_mask"), value_of(node).dim()
    q, k, v = (tracer.at(part) for part in (query, key, value))
    if q is None and k is None and v is None:
        return None
    mixed = [x for x in (q, k) if x is not None and not set(x.dims) <= {dims - 3}]
    one_sided = (q is None) != (k is None)
    masked = isinstance(mask, fx.Node) and _has_heads(mask)
    if mixed or one_sided or masked or (v is not None and not set(v.dims) <= {dims - 3, dims - 1}):
        return tracer.unknown(node, "it scales by the number of features of a head")
    return combined(tracer, node, [x for x in (q, k, v) if x is not None])


def _has_heads(mask: fx.Node) -> bool:
    return value_of(mask).dim() > 2 and value_of(mask).shape[-3] > 1


def combined(tracer: ChannelTracer, node: fx.Node, parts: list[LocatedChannels]) -> LocatedChannels | None:
    """Tensors whose heads go together."""
    first = parts[-1]
    for other in parts[:-1]:
        if other.ids.shape != first.ids.shape:
            return tracer.unknown(node, "its queries, keys and values have channels in different dimensions")
        tracer.declare(node, first, tracer.wiring.add, first.ids.flatten().numpy(), other.ids.flatten().numpy())
    return first


@rule("einsum", joins=True)
def einsum(tracer: ChannelTracer, node: fx.Node) -> LocatedChannels | None:
    """A sum of products: channels with the same letter go together; a letter that is summed adds up."""
    equation, *rest = node.args
    operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
    if not isinstance(equation, str) or "." in equation or "->" not in equation:
        return tracer.unknown(node, f"{name_of(node)} of another form")
    inputs, output = equation.replace(" ", "").split("->")
    by_letter: dict[str, list[Any]] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        x = tracer.at(operand)
        for dim, letter in enumerate(letters):
            has = x is not None and dim in x.dims
            by_letter.setdefault(letter, []).append(x.ids.flatten().numpy() if has and x is not None else None)
    found = {letter: ids for letter, ids in by_letter.items() if any(part is not None for part in ids)}
    if any(part is None for ids in found.values() for part in ids) or len(set(found) & set(output)) > 1:
        return tracer.unknown(node, "it multiplies channels with what has no channels there")
    for ids in found.values():
        for other in ids[1:]:
            tracer.wiring.add(ids[0], other)
    kept = [letter for letter in output if letter in found]
    if not kept:
        return None
    shape = [-1 if letter == kept[0] else 1 for letter in output]
    return LocatedChannels(torch.from_numpy(found[kept[0]][0].copy()).view(shape))


@rule(layers=[nn.MultiheadAttention], joins=True, gives_parts=True)
def attend_as_layer(tracer: ChannelTracer, node: fx.Node) -> Located:
    """torch's layer is as wide inside as what it reads and gives, so heads go with as many channels of these."""
    layer, name = cast(nn.MultiheadAttention, tracer.layer(node)), str(node.target)
    parts = [tracer.at(argument(node, place, key)) for place, key in enumerate(("query", "key", "value"))]
    read = [None if x is None else x.along(-1, layer.embed_dim) for x in parts]
    if any(channels is None for channels in read) or layer.in_proj_weight is None or layer.bias_k is not None:
        return tracer.unknown(node, "its queries, keys and values have different channels, or an offset")
    query, *others = cast(list[Channels], read)
    first = cast(LocatedChannels, parts[0])
    for other in others:
        tracer.wiring.add(query, other)
    tracer.wiring.tie_blocks(query, layer.num_heads)
    tracer.wiring.norm(name, query)
    tracer.wiring.add(query, tracer.wiring.layer(f"{name}.out_proj", query))
    return [first, None]
