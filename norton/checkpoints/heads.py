"""A fresh classifier in the place of a trained one, for another number of classes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from norton.checkpoints.about_data import forget_classes_
from norton.graph.copies import copied
from norton.graph.plan import apply_plan_, plan_of
from norton.models import dense_network
from norton.models.foreign import is_path


def telling_apart(net: nn.Module, num_classes: int) -> nn.Module:
    """A network like this one, of another number of classes and without its weights."""
    size = net.input_size if is_path(net.arch) else None
    return apply_plan_(dense_network(net.arch, num_classes, size, getattr(net, "arch_kwargs", None)), plan_of(net))


def with_fresh_head(state: Mapping[str, Tensor], net: nn.Module) -> tuple[dict[str, Tensor], str]:
    """A state dict with random weights for the classifier, where that is all that differs in size from a network's.

    net: of another number of classes than the state dict.  Returns what was done too, in words; empty for nothing.
    """
    found = other_classes(state, net)
    if found is None:
        return dict(state), ""
    layers = dict.fromkeys(key.rpartition(".")[0] for key in found.keys)
    fresh = {f"{name}.{key}": value for name in layers for key, value in _random(net.get_submodule(name)).items()}
    said = f"its classifier {found.layers} of {found.own} classes is replaced by a fresh one of {found.asked}"
    return dict(state) | {key: fresh[key].to(state[key].dtype) for key in found.keys}, said


class OtherClasses(NamedTuple):
    """A state dict's classifier of another number of classes: its layers, both numbers, the names of its tensors."""

    layers: str
    own: int
    asked: int
    keys: list[str]


def other_classes(state: Mapping[str, Tensor], net: nn.Module) -> OtherClasses | None:
    """How the classifier of a state dict differs from a network's; None where not that alone differs in size."""
    expected = net.state_dict()
    other = [key for key in expected if key in state and state[key].shape != expected[key].shape]
    if not _are_classifiers(other, state, expected):
        return None
    layers = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in other))
    return OtherClasses(layers, len(state[other[0]]), len(expected[other[0]]), other)


def with_other_head(net: nn.Module) -> tuple[nn.Module, str]:
    """A copy of a network with a fresh classifier for as many classes, and what was done, in words."""
    with torch.random.fork_rng(devices=[]):
        larger = telling_apart(net, net.num_classes + 1).state_dict()
    different = [key for key, value in net.state_dict().items() if value.shape != larger[key].shape]
    layers = dict.fromkeys(key.rpartition(".")[0] for key in different)
    other = copied(net)
    for name in layers:
        other.get_submodule(name).reset_parameters()
    forget_classes_(other)
    return other, f"its classifier {', '.join(layers)} is replaced by a fresh one for other classes"


def _are_classifiers(keys: Sequence[str], state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether these tensors differ in the number of classes, the same for all, and in nothing else."""
    rows = {len(state[key]) for key in keys if state[key].dim()}
    return len(rows) == 1 and all(state[key].shape[1:] == expected[key].shape[1:] for key in keys)


def _random(layer: nn.Module) -> dict[str, Tensor]:
    """Random weights of a layer: those that it has, or new ones of a layer on the meta device."""
    if any(parameter.is_meta for parameter in layer.parameters()):
        layer.to_empty(device="cpu")
        with torch.device("cpu"):
            layer.reset_parameters()
    return layer.state_dict()
