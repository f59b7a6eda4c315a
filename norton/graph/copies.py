"""Copies of networks whose weights hooks compute, and layers replaced wherever a network holds them."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._pytree import tree_leaves

COMPUTING_HOOKS = (SpectralNorm, WeightNorm, BasePruningMethod)  # of torch, that compute a weight before each call
_KINDS_OF_HOOKS = (
    *("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks"),
)


def copied(net: nn.Module) -> nn.Module:
    """A copy of a network, with the weights that torch's hooks compute as a call would compute them now.

    The older `torch.nn.utils.spectral_norm` and `weight_norm` and torch's masks leave a weight behind as an attribute,
    which torch does not copy after a call with gradients, and which is of old after `load_state_dict`.
    """
    made = deepcopied(net, {id(tensor): tensor.detach().clone() for tensor in computed_tensors(net)})
    for layer in nn.Module.modules(made):
        renew_(layer)
    return made


@torch.no_grad()
def deepcopied(net: nn.Module, known: dict[int, Any]) -> nn.Module:
    """A deep copy of a network, which takes some objects in it, by their identity, for others.

    What cannot be copied in it, such as a lock, a generator or an open file, the copy shares.  Of parameters of
    TorchScript modules torch would make tensors that were computed, which no training moves.
    """
    try:
        made = copy.deepcopy(net, dict(known))
    except TypeError:
        made = copy.deepcopy(net, known | _shared(net))
    for old, new in zip(scripted_in(net), scripted_in(made), strict=True):
        for own, other in zip(old.parameters(recurse=False), new.parameters(recurse=False), strict=True):
            other.requires_grad_(own.requires_grad)
    return made


def _shared(net: nn.Module) -> dict[int, Any]:
    """By its identity, what a network's modules hold and Python cannot copy."""
    found = {}
    for value in (value for layer in nn.Module.modules(net) for value in tree_leaves(vars(layer))):
        if not isinstance(value, Tensor | nn.Module):
            try:
                copy.deepcopy(value)
            except TypeError:
                found[id(value)] = value
    return found


def scripted_in(net: nn.Module) -> list[nn.Module]:
    """The modules in a network, with those in them, that are TorchScript."""
    return [layer for layer in nn.Module.modules(net) if isinstance(layer, torch.jit.ScriptModule)]


def held_tensors(net: nn.Module) -> list[Tensor]:
    """All tensors in a network's attributes, parameters and buffers or not."""
    held = (value for layer in nn.Module.modules(net) for value in tree_leaves(vars(layer)))
    return [value for value in held if isinstance(value, Tensor)]


def computed_tensors(net: nn.Module) -> list[Tensor]:
    """Tensors in a network's attributes that carry gradients to others, which torch cannot copy."""
    return [tensor for tensor in held_tensors(net) if not tensor.is_leaf]


@torch.no_grad()
def renew_(layer: nn.Module) -> None:
    """Compute, in a layer, what torch's hooks compute before a call, as in evaluation."""
    training, layer.training = layer.training, False
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, COMPUTING_HOOKS):
            hook(layer, ())
    layer.training = training


def computed_otherwise(layer: nn.Module) -> bool:
    """Whether a layer's weight is neither a parameter nor computed by a hook that `copied` knows, or its bias is."""
    hooks = layer._forward_pre_hooks.values()
    return is_parametrized(layer) or (
        "weight" not in layer._parameters and not any(isinstance(hook, COMPUTING_HOOKS) for hook in hooks)
    )


def is_hooked(layer: nn.Module) -> bool:
    """Whether a layer's call runs hooks other than those of torch that compute a weight."""
    before = layer._forward_pre_hooks.values()
    return bool(layer._forward_hooks) or not all(isinstance(hook, COMPUTING_HOOKS) for hook in before)


def keep_hooks_(old: nn.Module, new: nn.Module) -> None:
    """Let a module that takes the place of another call its hooks, but for those of torch that compute a weight."""
    own = {key for key, hook in old._forward_pre_hooks.items() if isinstance(hook, COMPUTING_HOOKS)}
    for kind in _KINDS_OF_HOOKS:
        getattr(new, kind).update({key: hook for key, hook in getattr(old, kind).items() if key not in own})
    new._is_full_backward_hook = old._is_full_backward_hook


def replace_(net: nn.Module, new_of: Mapping[nn.Module, nn.Module]) -> None:
    """Let modules take the place of others wherever the modules of a network hold them, in place.

    That is as submodules under any name, and in attributes, with their lists, tuples and dictionaries in each other.
    """
    known: dict[int, tuple[Any, Any]] = {}  # what was seen, kept so that no other object can have its id; and the new

    def replaced(value: Any) -> Any:
        if isinstance(value, nn.Module):
            return new_of.get(value, value)
        if not isinstance(value, list | tuple | dict):
            return value
        if id(value) not in known:
            known[id(value)] = value, value
            if isinstance(value, tuple):
                known[id(value)] = value, _tuple_of(value, [replaced(item) for item in value])
            else:
                for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                    if (new := replaced(item)) is not item:
                        value[key] = new
        return known[id(value)][1]

    for layer in list(nn.Module.modules(net)):
        replaced(vars(layer))


def _tuple_of(old: tuple, items: list) -> tuple:
    if all(new is item for new, item in zip(items, old, strict=True)):
        return old
    return old._make(items) if hasattr(old, "_make") else tuple(items)
