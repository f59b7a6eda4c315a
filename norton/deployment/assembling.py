"""A folded network with a form for each of its decomposed layers, in one memory format."""

from collections.abc import Mapping

import torch
from torch import nn

from norton.deployment.entrance import Entrance, enter_by_
from norton.deployment.exact_forms import DENSE, exact_form
from norton.deployment.folding import Folded
from norton.deployment.layouts import Reshaping
from norton.deployment.onednn import join_relus_, pack_
from norton.graph.copies import deepcopied
from norton.graph.inputs import Inputs


def assemble(folded: Folded, chosen: Mapping[str, str], channels_last: bool) -> nn.Module:
    """A copy with these forms of its decomposed layers; those that are not named are dense."""
    made = {name: exact_form(layer, chosen.get(name, DENSE)) for name, layer in folded.decomposed.items()}
    places = {id(layer): made[name] for name, layer in folded.decomposed.items()}
    net = deepcopied(folded.net, places)  # in the layers' places
    joined: dict[str, str] = {}
    if channels_last:
        for parameter in net.parameters():  # 5-D ones have another format
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        joined = join_relus_(pack_(net), folded.relus)
    sizes = {folded.sizes} if folded.decides and (folded.folded or joined) else None
    if channels_last or sizes or folded.views:
        layout = torch.channels_last if channels_last else torch.contiguous_format if folded.views else None
        enter_by_(net, Entrance(layout, folded.folded, joined, sizes), folded.views)
    return net


def input_shapes(net: nn.Module, inputs: Inputs, layers: Mapping[str, nn.Module]) -> dict[str, tuple[int, ...]]:
    """Layer → the shape of what it reads first; layers that are not called are left out."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, args, named, name=name: found.setdefault(name, tuple([*args, *named.values()][0].shape)) and None,
            with_kwargs=True,
        )
        for name, layer in layers.items()
    ]
    with Reshaping():  # of a network that was deployed before
        inputs.call(net)
    for hook in hooks:
        hook.remove()
    return found
