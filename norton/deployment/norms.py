"""BatchNorms that a layer can take up, by the record of a forward pass: modules, and functions that modules call."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from norton.deployment.following import calls, pairs_in, takers
from norton.graph.layers import is_decomposed, torch_kind
from norton.graph.nodes import argument, name_of, value_of

_DIMENSIONS: dict[type[nn.Module], int] = {  # of the outputs, whose second one BatchNorm is along
    **{nn.Linear: 2, nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5},
    **{nn.ConvTranspose1d: 3, nn.ConvTranspose2d: 4, nn.ConvTranspose3d: 5},
}


class Foldable(NamedTuple):
    """A layer, the module whose BatchNorm alone takes its output, and the modules of it that compute after that.

    scale, shift: (O,), what the BatchNorm does.
    """

    writer: str
    norm: str
    after: tuple[str, ...]
    scale: Tensor
    shift: Tensor


def foldable_norms(net: nn.Module, graph: fx.Graph) -> Iterator[Foldable]:
    """What can be folded, in a network in evaluation mode and the record of its forward pass."""
    layers, held = dict(net.named_modules()), _Held(net, graph)
    called: dict[str, list[fx.Node]] = {}
    for node in calls(graph):
        called.setdefault(str(node.target), []).append(node)
    for writer, norm in pairs_in(graph).items():
        free = _is_norm(layers[norm]) and not held.bound(writer) and not held.bound(norm)
        if free and _takes_up(layers[writer], called[writer]):
            yield Foldable(writer, norm, (), *affine_of(layers[norm]))
    for node in graph.nodes:
        if name_of(node) == "batch_norm" and (found := _of_function(net, graph, node)):
            nodes = called[found.writer]
            if len(nodes) == 1 and _takes_up(layers[found.writer], nodes) and not held.bound(found.writer):
                yield found


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None and not layer.training


def _takes_up(layer: nn.Module, nodes: list[fx.Node]) -> bool:
    """Whether a layer's outputs can be scaled by its weights, along the dimension that BatchNorm is along."""
    if is_decomposed(layer):
        dims: int | None = layer.composed_weight().dim()
    elif getattr(layer, "traced_whole", False):  # a packed convolution
        dims = None if getattr(layer, "relu", False) else 4
    else:
        dims = _DIMENSIONS.get(torch_kind(layer) or nn.Module)
    return all(value_of(node).dim() == dims for node in nodes)


class _Held:
    """Who has the weights of a network's layers."""

    def __init__(self, net: nn.Module, graph: fx.Graph):
        self.net, self.read = net, {str(node.target) for node in graph.find_nodes(op="get_attr")}
        self.holders: Counter[int] = Counter()  # id of a tensor → how many modules have it
        for module in nn.Module.modules(net):
            self.holders.update(map(id, [*module._parameters.values(), *module._buffers.values()]))

    def bound(self, name: str) -> bool:
        """Whether something else computes or uses a layer's weights, so that they cannot be changed."""
        layer = self.net.get_submodule(name)
        shared = any(self.holders[id(tensor)] > 1 for tensor in [*layer.parameters(), *layer.buffers()])
        hooked = any(map(_hooked, nn.Module.modules(layer)))
        return shared or hooked or not self.read.isdisjoint(_tensors(name, layer)) or is_parametrized(layer)


def _tensors(name: str, layer: nn.Module) -> set[str]:
    return {f"{name}.{key}" for key, _ in [*layer.named_parameters(), *layer.named_buffers()]}


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm does: scale and shift, (O,) each."""
    return _affine(norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


def _affine(mean: Any, var: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def _of_function(net: nn.Module, graph: fx.Graph, node: fx.Node) -> Foldable | None:
    """A module that calls the function for what a layer gives, and then only modules of its own, one after the other.

    So are norms that activate as well.
    """
    names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given: dict[str, Any] = {name: argument(node, place, name) for place, name in enumerate(names)}
    name = str(*node.meta["nn_module_stack"])
    before, tensors = given["input"], [given[key] for key in names[1:5] if given[key] is not None]
    if not name or before.op != "call_module" or takers(before) != [node] or given["training"]:
        return None
    own = _tensors(name, net.get_submodule(name))
    if any(tensor.op != "get_attr" or list(tensor.users) != [node] or tensor.target not in own for tensor in tensors):
        return None
    after = _chain(graph, node, name)
    if after is None or _hooked(net.get_submodule(name)) or None in (given["running_mean"], given["running_var"]):
        return None
    mean, var, weight, bias = (None if given[key] is None else _tensor(net, given[key]) for key in names[1:5])
    eps = 1e-5 if given["eps"] is None else given["eps"]
    return Foldable(str(before.target), name, after, *_affine(mean, var, weight, bias, eps))


def _chain(graph: fx.Graph, norm: fx.Node, name: str) -> tuple[str, ...] | None:
    """The modules of a module that compute one after the other on what its norm gives; None where it does more."""
    inside: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        place = str(*node.meta.get("nn_module_stack", {"": None}))
        if node is norm or not f"{place}.".startswith(f"{name}.") or node.op == "get_attr":
            continue
        part = place.removeprefix(name).lstrip(".").partition(".")[0]
        inside.setdefault(f"{name}.{part}" if part else "", []).append(node)
    last = norm
    for part, nodes in inside.items():
        reads = {arg for node in nodes for arg in node.all_input_nodes if arg not in nodes and arg.op != "get_attr"}
        if not part or reads != {last} or any(user not in nodes for user in takers(last)):
            return None
        last = nodes[-1]
        if any(user not in nodes for node in nodes[:-1] for user in node.users):
            return None
    return tuple(inside)


def _hooked(layer: nn.Module) -> bool:
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def _tensor(net: nn.Module, node: fx.Node) -> Tensor:
    path, _, key = str(node.target).rpartition(".")
    return getattr(net.get_submodule(path), key)
