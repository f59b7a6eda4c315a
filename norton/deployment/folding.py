"""Folding BatchNorm into the layers before it, in a copy of the network for evaluation."""

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from norton.deployment.exact_forms import scale_outputs_
from norton.deployment.onednn import PackedConv2d
from norton.graph.copies import copied, replace_
from norton.graph.layers import is_decomposed
from norton.graph.recording import trace


@torch.no_grad()
def fold(net: nn.Module) -> fx.GraphModule:
    """A network for evaluation with each BatchNorm folded into the convolution or linear layer that it alone follows.

    Dropout goes too.  Decomposed layers stay what they are; parameters have no gradients.  Raises InputError for a
    network that torch.fx cannot trace.
    """
    single = isinstance(net, nn.Conv2d | nn.Linear) or is_decomposed(net)
    net = copied(nn.Sequential(net) if single else net).eval().requires_grad_(False)
    _thaw_(net)
    graph = trace(net)
    folded = fx.GraphModule(net, graph, type(net).__name__)
    calls = [folded.get_submodule(node.target) for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # which channels-last images need
        if node.op != "call_module":
            continue
        layer, before = folded.get_submodule(node.target), node.all_input_nodes[0]
        if isinstance(layer, nn.Identity | nn.modules.dropout._DropoutNd):
            _skip_(graph, node)
        elif _is_norm(layer) and before.op == "call_module" and len(before.users) == 1:
            writer = folded.get_submodule(before.target)
            alone = all(sum(call is one for call in calls) == 1 for one in (writer, layer))
            if alone and _folds_into(layer, writer) and not _bound(folded, writer):
                scale_outputs_(writer, *affine_of(layer))
                _skip_(graph, node)
    graph.lint()
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded.requires_grad_(False)


def _thaw_(net: nn.Module) -> None:
    """Make torchvision's frozen BatchNorms plain ones, which torch.fx keeps whole."""
    if (torchvision := sys.modules.get("torchvision.ops.misc")) is None:
        return  # it takes over a second to import, and a network that has such layers has done so
    thawed: dict[nn.Module, nn.Module] = {}
    for layer in nn.Module.modules(net):
        if isinstance(layer, torchvision.FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(len(layer.weight), layer.eps, device=layer.weight.device, dtype=layer.weight.dtype)
            norm.load_state_dict(layer.state_dict(), strict=False)
            thawed[layer] = norm.eval().requires_grad_(False)
    replace_(net, thawed)


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, _BatchNorm) and layer.running_mean is not None


def _folds_into(norm: nn.Module, writer: nn.Module) -> bool:
    """Whether a BatchNorm scales the outputs of a layer, as far as types tell."""
    if type(writer) in (nn.Conv2d, PackedConv2d):
        return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm) and not getattr(writer, "relu", False)
    if is_decomposed(writer) and writer.composed_weight().ndim == 4:
        return isinstance(norm, nn.BatchNorm2d | nn.SyncBatchNorm)
    return type(writer) is nn.Linear and isinstance(norm, nn.BatchNorm1d)


def _bound(net: fx.GraphModule, layer: nn.Module) -> bool:
    """Whether something else computes or uses a layer's weights, so that they cannot be scaled."""
    own = {id(parameter) for parameter in layer.parameters()}
    others = [
        id(p)
        for module in nn.Module.modules(net)
        for p in module._parameters.values()
        if p is not None and id(p) in own
    ]
    read = {id(_attribute(net, node.target)) for node in net.graph.find_nodes(op="get_attr")}
    hooks = any(part._forward_hooks or part._forward_pre_hooks for part in nn.Module.modules(layer))
    return len(others) > len(own) or bool(own & read) or hooks or is_parametrized(layer)


def _attribute(net: nn.Module, path: str) -> Any:
    return operator.attrgetter(path)(net)


def affine_of(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale = (norm.running_var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def _skip_(graph: fx.Graph, node: fx.Node) -> None:
    node.replace_all_uses_with(node.all_input_nodes[0])
    graph.erase_node(node)
