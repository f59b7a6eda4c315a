"""State dicts from elsewhere, matched to a network by what they hold.

Files of other programs have the same tensors under other names: inside of wrappers, in containers, without what was
added to torch later, with a classifier of another name.  What is taken for granted here is said in a line each; what
cannot be matched is listed; nothing is guessed silently.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from norton.common.errors import InputError

# Where other programs keep a state dict.  Of several the one with the most tensors counts, else the first of these;
# those of averaged weights are last.
CONTAINERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "params", "weights"),
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema", "params_ema"),
)
# Names that torch puts between those of a network when it wraps a part of it.
_BETWEEN = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_AUXILIARY = "aux_classifier."  # of torchvision's segmentation networks: for training alone, and costly
_COUNTER = "num_batches_tracked"  # of BatchNorm, which older files lack
_DEEPEST = 8  # containers inside of containers
_SHOWN = 6  # of the names that do not match
State: TypeAlias = Mapping[str, Tensor]


class Match(NamedTuple):
    """state: tensors under the names of the network.  assumed: what was taken for granted, a line each.

    missing: names of the network that the file has nothing for.  left: names of the file that nothing is for.
    """

    state: dict[str, Tensor]
    assumed: list[str]
    missing: list[str]
    left: list[str]


class Found(NamedTuple):
    """A state dict in what a file holds; the key that it was under, and the keys of what else is there."""

    state: dict[str, Tensor]
    key: str
    others: list[str]


def state_dict_in(content: Any, depth: int = 0) -> Found | None:
    """The state dict in what a file holds; None if there is none."""
    if not isinstance(content, Mapping) or depth > _DEEPEST:
        return None
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        return Found(tensors, "", [])
    inner = {key: found for key in CONTAINERS if (found := state_dict_in(content.get(key), depth + 1)) is not None}
    if inner:
        key, found = max(inner.items(), key=lambda one: len(one[1].state))  # of equally many the first
        return Found(found.state, f"{key}.{found.key}".rstrip("."), [*found.others, *(k for k in inner if k != key)])
    beside = [str(key) for key, value in content.items() if str(key) not in tensors]
    if tensors and all(isinstance(content[key], int | float | str | None) for key in content if str(key) in beside):
        return Found(tensors, "", beside)  # numbers and texts, such as that of the epoch
    return None


def match(state: State, expected: State) -> Match:
    """The tensors of a state dict under the names of a network, whose own state dict is `expected`.

    Layers that are decomposed in the file count as those that they stand for.
    """
    assumed: list[str] = []
    found = dict(state)
    names = (_without_between, _without_wrapper, _without_auxiliary, _with_classifier)
    for step in (*names, _with_counters, _counting, _in_precision):
        found = step(found, expected, assumed)
    missing = [key for key in expected if key not in found]
    return Match(found, assumed, missing, [key for key in found if key not in expected])


def check_one_network(state: State, expected: State, path: str | Path) -> None:
    """Raise InputError where a file has a whole network under several prefixes: a teacher beside a student, say."""
    whole = {key for key in expected if not key.endswith(_COUNTER)}
    if whole <= state.keys():
        return
    counts = Counter(prefix for key in state for prefix, rest in _cuts(key) if rest in whole)
    found = sorted(prefix for prefix, count in counts.items() if count == len(whole))
    if len(found) > 1:
        raise InputError(
            f"{path}: has the whole network {len(found)} times, as {_some(found)}; save the one that you mean by itself"
        )


def layer_of(key: str) -> str:
    """The layer that a tensor belongs to, decomposed or not."""
    return key.split(".feature.")[0] if ".feature." in key else key.rpartition(".")[0]


def check_matched(matched: Match, expected: State, path: str | Path, kind: str) -> None:
    """Raise InputError for names that do not match, each with its shape and the nearest candidate.

    kind: the network, for people.
    """
    if not matched.missing and not matched.left:
        return
    lines = [_described(key, expected, matched.left, matched.state) for key in matched.missing]
    lines += [f"{key} {_shape(matched.state[key])} of the file has no place" for key in matched.left]
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    some = "1 name does" if len(lines) == 1 else f"{len(lines)} names do"
    raise InputError(
        f"{path}: {some} not match the {kind}: {'; '.join(lines[:_SHOWN])}{more}; "
        "give the network that the file is of, or rename its tensors"
    )


def _described(key: str, expected: State, left: Collection[str], state: State) -> str:
    """A name without a tensor, its shape, and what in the file is nearest to it: of the same shape, if there is any."""
    shape = expected[key].shape
    alike = [name for name in left if state[name].shape == shape] or list(left)
    nearest = difflib.get_close_matches(key, alike, 1, 0.0)
    hint = f", nearest in the file: {nearest[0]} {_shape(state[nearest[0]])}" if nearest else ""
    return f"{key} {_shape(expected[key])} is missing{hint}"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "(a number)"


def _without_between(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """Without the names that torch puts between, wherever they are."""
    there = sorted({part for key in state for part in key.split(".") if part in _BETWEEN})
    if not there or any(part in key.split(".") for key in expected for part in there):
        return dict(state)
    assumed.append(f"{', '.join(there)} is left out of its names")
    return {".".join(part for part in key.split(".") if part not in there): value for key, value in state.items()}


def _without_wrapper(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """Without the prefix of a wrapper, or with that of the network, whichever makes most names fit."""
    as_they_are = sum(key in expected for key in state)
    outer, outer_fits = _common_prefix(state, expected)
    inner, inner_fits = _common_prefix(expected, state)
    # That a few names fit by chance is no wrapper.
    if max(outer_fits, inner_fits) <= max(as_they_are, min(len(state), len(expected)) // 2):
        return dict(state)
    if outer_fits >= inner_fits:
        assumed.append(f"{outer} is left out of its names")
        inside = {key.removeprefix(outer): value for key, value in state.items() if key.startswith(outer)}
        others = {key: value for key, value in state.items() if not key.startswith(outer)}
        if others and all(key in inside or key.endswith(_COUNTER) for key in expected):
            # A counter, the weights of a loss.
            assumed.append(f"{_some(others)} beside the network {'is' if len(others) == 1 else 'are'} left out")
            return inside
        return others | inside
    assumed.append(f"{inner} is put before its names")
    return {inner + key: value for key, value in state.items()}


def _some(names: Collection[str]) -> str:
    return ", ".join([*names][:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _cuts(key: str) -> Iterator[tuple[str, str]]:
    """The ways to take a prefix, with its dot, off a name."""
    parts = key.split(".")
    for place in range(1, len(parts)):
        yield ".".join(parts[:place]) + ".", ".".join(parts[place:])


def _common_prefix(longer: Collection[str], shorter: Collection[str]) -> tuple[str, int]:
    """What most names have before one of the others, with the dot, and how many have it."""
    counts = Counter(prefix for key in longer for prefix, rest in _cuts(key) if rest in shorter)
    return max(counts.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))


def _without_auxiliary(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """Without the auxiliary classifier of a segmentation network, where the network has none."""
    kept = {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    if len(kept) == len(state) or any(key.startswith(_AUXILIARY) for key in expected):
        return dict(state)
    assumed.append("its auxiliary classifier, which is for training, is left out")
    return kept


def _with_classifier(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """With the name that the network's classifier has, where that is the only layer that is left on both sides."""
    ours, theirs = ({layer_of(key) for key in some} for some in (expected, state))
    if len(ours - theirs) != 1 or len(theirs - ours) != 1:
        return dict(state)
    [own], [old] = ours - theirs, theirs - ours
    dims, others = (
        {key.removeprefix(layer): value.dim() for key, value in some.items() if layer_of(key) == layer}
        for layer, some in ((own, expected), (old, state))
    )
    if dims != others or dims.get(".weight", 0) < 2:
        return dict(state)
    assumed.append(f"its layer {old} is taken for {own}, the only one that is missing")
    return {own + key.removeprefix(old) if layer_of(key) == old else key: value for key, value in state.items()}


def _with_counters(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """With BatchNorm's counters of batches at zero, which are used by a momentum of None alone."""
    counters = [key for key in expected if key.endswith(_COUNTER) and key not in state and _variance(key) in state]
    if counters:
        assumed.append(f"{len(counters)} counters of batches ({_COUNTER}), which older files lack, are 0")
    return dict(state) | {key: torch.zeros((), dtype=torch.int64) for key in counters}


def _counting(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """With counters of batches in whole numbers, which some programs turn into others with all else."""
    odd = {key for key, value in state.items() if key.endswith(_COUNTER) and value.is_floating_point()}
    return {key: value.long() if key in odd else value for key, value in state.items()}


def _variance(counter: str) -> str:
    return counter.removesuffix(_COUNTER) + "running_var"


def _in_precision(state: State, expected: State, assumed: list[str]) -> dict[str, Tensor]:
    """In the precision of the network."""
    changed = {
        key: value.to(expected[key].dtype)
        for key, value in state.items()
        if key in expected
        and value.is_floating_point()
        and expected[key].is_floating_point()
        and value.dtype != expected[key].dtype
    }
    if changed:
        old, new = (
            ", ".join(sorted({str(some[key].dtype).removeprefix("torch.") for key in changed}))
            for some in (state, expected)
        )
        assumed.append(f"numbers in {old} are converted to {new}")
    return dict(state) | changed
