"""Folding BatchNorm into the layers before it, in a copy of the network that runs the network's own code.

What may be folded, the record of a forward pass tells (`norton.deployment.following`, `norton.deployment.norms`).
"""

import sys
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from norton.deployment.entrance import sizes_of, without_entrance_
from norton.deployment.exact_forms import scale_outputs_
from norton.deployment.following import FoldedNorm, decides_by_sizes, followers, pairs_in, recorded
from norton.deployment.layouts import Reshaping, laid_out
from norton.deployment.norms import Foldable, foldable_norms
from norton.graph.copies import copied, replace_
from norton.graph.inputs import Example, Inputs, inputs_of
from norton.graph.layers import is_decomposed, torch_kind
from norton.graph.nodes import name_of, value_of


@dataclass(frozen=True)
class Folded:
    """A network for evaluation, and what is known of its forward pass on an example.

    sizes: of the example.  decomposed: the layers that may take another form, by name.  folded: layer → what is left of
    the norm it took up.  relus: layer → the ReLU module that alone takes what it gives.  decides: the network's code
    asks for sizes, by which it may decide.  code: the record, as text.  channels_last: whether it computes in that
    format.  views: it has views of what layers give, which may have to be copies.
    """

    net: nn.Module
    sizes: tuple[torch.Size, ...]
    decomposed: dict[str, nn.Module]
    folded: dict[str, str] = field(default_factory=dict)
    relus: dict[str, str] = field(default_factory=dict)
    decides: bool = False
    code: str = ""
    channels_last: bool = False
    views: bool = False


@torch.no_grad()
def fold(net: nn.Module, example: Example | Inputs) -> Folded:
    """A network for evaluation with each BatchNorm folded into the layer that it alone follows.

    example: what the network takes.  Decomposed layers stay what they are; parameters have no gradients.  In a
    network that reads values in its forward pass, by which it may decide, every BatchNorm stays.
    """
    inputs = example if isinstance(example, Inputs) else inputs_of(example)
    single = isinstance(net, nn.Conv2d | nn.Linear) or is_decomposed(net)
    plain = without_entrance_(copied(nn.Sequential(net) if single else net)).eval().requires_grad_(False)
    _thaw_(plain)
    found, before = plain, recorded(plain, inputs)
    if before is None:
        return Folded(plain, sizes_of(inputs), {}, channels_last=_computes_laid_out(plain, inputs, True), views=True)
    made = copied(plain)
    _fold_(made, list(foldable_norms(made, before)))
    after = recorded(made.requires_grad_(False), inputs)
    if after is None:  # its code takes something of a norm that is gone
        after = before
    else:
        found = made
    layers = dict(found.named_modules())
    folded = {layer: then for layer, then in pairs_in(after).items() if isinstance(layers[then], FoldedNorm)}
    return Folded(
        found,
        sizes_of(inputs),
        _decomposed_layers(found, after),
        folded,
        _relus(layers, followers(after), folded),
        decides_by_sizes(after),
        str(after),
        _computes_laid_out(found, inputs, _views(after)),
        _views(after),
    )


def _thaw_(net: nn.Module) -> None:
    """Make torchvision's frozen BatchNorms plain ones."""
    if (torchvision := sys.modules.get("torchvision.ops.misc")) is None:
        return  # it takes over a second to import, and a network that has such layers has done so
    thawed: dict[nn.Module, nn.Module] = {}
    for layer in nn.Module.modules(net):
        if isinstance(layer, torchvision.FrozenBatchNorm2d):
            norm = nn.BatchNorm2d(len(layer.weight), layer.eps, device=layer.weight.device, dtype=layer.weight.dtype)
            norm.load_state_dict(layer.state_dict(), strict=False)
            thawed[layer] = norm.eval().requires_grad_(False)
    replace_(net, thawed)


def _fold_(net: nn.Module, norms: Iterable[Foldable]) -> None:
    """Let layers do what norms did, in place."""
    new_of: dict[nn.Module, nn.Module] = {}
    for one in norms:
        scale_outputs_(net.get_submodule(one.writer), one.scale, one.shift)
        norm, left = net.get_submodule(one.norm), FoldedNorm().eval()
        for key in getattr(norm, "__constants__", ()):  # numbers that code asks a norm for
            setattr(left, key, getattr(norm, key))
        after = [net.get_submodule(name) for name in one.after]
        new_of[norm] = nn.Sequential(left, *after).eval() if after else left
    replace_(net, new_of)


def _decomposed_layers(net: nn.Module, graph: fx.Graph) -> dict[str, nn.Module]:
    """First name → layer, without those whose parts the network also reads itself, which stay what they are."""
    read = {str(node.target) for node in graph.find_nodes(op="get_attr")}
    return {
        name: layer
        for name, layer in net.named_modules()
        if is_decomposed(layer) and read.isdisjoint(f"{name}.{key}" for key, _ in layer.named_parameters())
    }


def _relus(layers: Mapping[str, nn.Module], following: Mapping[str, str], folded: Mapping[str, str]) -> dict[str, str]:
    """Layer → the ReLU module that alone takes what it gives, behind what is left of a norm."""
    found = {layer: following.get(folded.get(layer, layer)) for layer in following}
    return {layer: then for layer, then in found.items() if then and torch_kind(layers[then]) is nn.ReLU}


def _views(graph: fx.Graph) -> bool:
    """Whether there may be views of what layers give that torch refuses in channels-last."""
    return any(name_of(node) == "view" and _may_fail(node) for node in graph.nodes)


def _may_fail(node: fx.Node) -> bool:
    shape = value_of(node.args[0]).shape
    if len(shape) != 4:
        return len(shape) > 2
    try:
        laid_out(torch.empty(shape, device="meta")).view(*fx.node.map_arg(node.args[1:], value_of))
    except (RuntimeError, ValueError):  # the latter without values
        return True
    return False


def _computes_laid_out(net: nn.Module, inputs: Inputs, views: bool) -> bool:
    """Whether a network computes in channels-last."""
    if not any(x.ndim == 4 for x in inputs.tensors):
        return False
    try:
        with Reshaping() if views else nullcontext():
            inputs.map(laid_out).call(net)
    except (RuntimeError, ValueError):  # the latter without values
        return False
    return True
