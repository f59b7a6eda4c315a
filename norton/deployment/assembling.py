"""A folded network with a form for each of its decomposed layers, in one memory format."""

import copy
import operator
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from norton.deployment.exact_forms import DENSE, exact_form
from norton.deployment.onednn import join_relus_, pack_
from norton.graph.layers import is_decomposed


def assemble(folded: fx.GraphModule, chosen: Mapping[str, str], channels_last: bool) -> fx.GraphModule:
    """A copy with these forms of its decomposed layers; those that are not named are dense."""
    layers = decomposed_layers(folded)
    made = {name: exact_form(layer, chosen.get(name, DENSE)) for name, layer in layers.items()}
    net = copy.deepcopy(folded, {id(layer): made[name] for name, layer in layers.items()})  # in the layers' places
    if channels_last:
        images = next(node for node in net.graph.nodes if node.op == "placeholder")  # others have their defaults
        with net.graph.inserting_after(images):
            laid = net.graph.call_method("contiguous", (images,), {"memory_format": torch.channels_last})
        images.replace_all_uses_with(laid, delete_user_cb=lambda user: user is not laid)
        for parameter in net.parameters():  # 5-D ones have another format
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        net = join_relus_(pack_(net))
    return net


def decomposed_layers(net: fx.GraphModule) -> dict[str, nn.Module]:
    """First name → layer, without those whose parts the network also reads itself, which stay what they are."""
    read = {id(operator.attrgetter(str(node.target))(net)) for node in net.graph.find_nodes(op="get_attr")}
    decomposed = {name: layer for name, layer in net.named_modules() if is_decomposed(layer)}
    return {name: layer for name, layer in decomposed.items() if not read & set(map(id, layer.parameters()))}


def input_shapes(net: fx.GraphModule, example: Tensor, layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Layer → the shape of what it reads first; layers that are not called are left out."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, named, name=name: found.setdefault(name, tuple([*args, *named.values()][0].shape)) and None,
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    net(example)
    for hook in hooks:
        hook.remove()
    return found
