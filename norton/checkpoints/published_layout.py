"""Published files, which hold weights alone: network, rank and widths from the names and shapes of their layers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from norton.checkpoints.matching import layer_of, match
from norton.common.errors import InputError
from norton.graph.plan import apply_plan_
from norton.models import NETWORKS, dense_network


def identify(state_dict: Mapping[str, Tensor]) -> str | None:
    """The architecture whose layers these are, whatever the rank and rates, and whatever wraps their names."""
    for arch in NETWORKS:
        with torch.device("meta"):
            expected = dense_network(arch).state_dict()
        matched = match(state_dict, expected)
        if {layer_of(key) for key in matched.state} == {layer_of(key) for key in expected}:
            return arch
    return None


def network_of_shapes(
    state: Mapping[str, Tensor], path: str | Path, arch: str | None = None, input_size: Sequence[int] | None = None
) -> nn.Module:
    """The network on the meta device that has a published file's names and shapes, or the nearest to them.

    arch, input_size: as in `norton.build`; by default the architecture that has these names, and its own size.
    """
    found = identify(state)
    if arch is not None and found is not None and arch != found:
        raise InputError(f"{path}: holds a {found}, not a {arch} as told")
    arch = arch or found
    if arch is None:
        raise InputError(
            f"{path}: its layers are those of none of {', '.join(NETWORKS)}; say whose they are: the path of its "
            "constructor with model.arch= from the shell, arch= or net= in norton.load"
        )
    with torch.device("meta"):
        state = match(state, dense_network(arch).state_dict()).state
    linear = [value for key, value in state.items() if key.endswith(".weight") and value.dim() == 2]
    if not linear:
        with torch.device("meta"):
            return dense_network(arch, input_size=input_size)  # the strict loading names what is missing
    classes, nearest, fewest = len(linear[-1]), None, len(state) + 1
    with torch.device("meta"):
        if found is None:
            return dense_network(arch, classes, input_size)  # the strict loading names what is missing
        for plan in _possible_plans(dense_network(arch, classes, input_size), state):
            try:
                net = apply_plan_(dense_network(arch, classes, input_size), plan)
            except (RuntimeError, ValueError, ZeroDivisionError):  # no network has these widths
                continue
            wrong = sum(key not in state or state[key].shape != v.shape for key, v in net.state_dict().items())
            if wrong < fewest:
                nearest, fewest = net, wrong
            if not wrong:
                break
    if nearest is None:
        raise InputError(f"{path}: the shapes of its weights are those of no {arch}, whatever the rank and rates")
    return nearest


def _possible_plans(dense: nn.Module, state: Mapping[str, Tensor]) -> Iterator[list[dict]]:
    """The plans that the shapes of a published file allow: one per rank that divides its factors.

    Widths follow from the rank, and all other shapes from both, so that one plan at most fits them all.
    """
    wiring, head = dense.wiring(), ".feature.pointwise.weight"
    layers = [name for names in wiring.writers.values() for name in names]
    decomposed = [name for name in layers if f"{name}{head}" in state]
    weights = {name: state[f"{name}{head if name in decomposed else '.weight'}"] for name in layers}
    rows = {name: weight.shape[0] if weight.dim() else 0 for name, weight in weights.items()}
    most = max((dense.get_submodule(name).weight[0, 0].numel() for name in decomposed), default=1)
    for rank in range(1, most + 1):
        if any(rows[name] % rank for name in decomposed):
            continue
        widths = {axis: rows[w[0]] // (rank if w[0] in decomposed else 1) for axis, w in wiring.writers.items()}
        keep = {wiring.name(axis): list(range(width)) for axis, width in widths.items() if width < wiring.width(axis)}
        plan = [{"op": "decompose", "method": "cp", "ranks": dict.fromkeys(decomposed, rank)}] if decomposed else []
        yield plan + ([{"op": "prune", "keep": keep}] if keep else [])
