"""Checkpoints: plain data and tensors that rebuild their network, and files in the published layout."""

import copy
import io
import lzma
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton.checkpoints import coding
from norton.common.errors import InputError, first_line
from norton.common.files import write_whole
from norton.graph import wiring_of
from norton.graph.input_sizes import stated_size
from norton.graph.layers import is_decomposed
from norton.graph.plan import apply_plan_, plan_of
from norton.models import NETWORKS, build, dense_network
from norton.models.foreign import check_told, is_path, tell

FORMAT = 1
UNREADABLE = (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError)


def save(
    net: nn.Module,
    path: str | Path,
    *,
    metrics: Mapping[str, Any] | None = None,
    lineage: Sequence[Mapping[str, Any]] = (),
    compress: bool = False,
) -> Path:
    """Write a network that `load` rebuilds: architecture, plan, weights, metrics, lineage.

    metrics: what the file claims, e.g. {"top1": 93.8} in percent.  lineage: where it came from, a record per step.
    compress: a smaller file, without loss, and much smaller after `norton.share_weights`; it takes up to a second per
    million weights.
    A network from elsewhere than `norton.build` can be saved too; `load` then needs its dense form, and a warning says
    so.  Of one that `norton.build` made by the path of a constructor the file holds the path.  Raises InputError for a
    deployed network, which `load` could not rebuild.
    """
    if hasattr(net, "deployment"):
        raise InputError(
            f"{path}: the network is a deployed one; save the network it was made of, and its choice with "
            ".deployment.save(FILE) for norton.deploy(net, example, choice=FILE), or use "
            "norton.deployment.export.to_program"
        )
    arch = getattr(net, "arch", None)
    if not (isinstance(arch, str) and (arch in NETWORKS or is_path(arch))):
        warnings.warn(
            f"{path}: norton.load will need the dense network, net=, because norton.build did not make it; a file "
            "rebuilds alone what norton.build makes, e.g. norton.build('torchvision.models.resnet18') or the path of a "
            "constructor of your own",
            stacklevel=2,
        )
    size = stated_size(net)
    about = {"arch": arch, "num_classes": getattr(net, "num_classes", None)}
    about |= {"input_size": None if size is None else list(size)}
    return write(net, path, about, metrics, lineage, compress=compress)


def write(
    net: nn.Module,
    path: str | Path,
    about: Mapping[str, Any],
    metrics: Mapping[str, Any] | None,
    lineage: Sequence[Mapping[str, Any]],
    *,
    compress: bool = False,
) -> Path:
    """Write a network's plan, weights, metrics and lineage; about: what else it takes to build it again."""
    state = {key: value.detach().cpu() for key, value in net.state_dict().items()}
    content = {
        "format": FORMAT,
        **about,
        "plan": plan_of(net),
        **({"packed": coding.pack(state)} if compress else {"state_dict": state}),
        "metrics": dict(metrics or {}),
        "lineage": [dict(step) for step in lineage],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_whole(path, coding.compress(buffer.getvalue()) if compress else buffer.getvalue())


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    rank: int | None = None,
    compress_rate: str | Sequence[float] | None = None,
    net: nn.Module | None = None,
) -> nn.Module:
    """The network of a checkpoint, in evaluation mode, on the CPU.

    Nothing else is needed: a published file (`{"state_dict", "rank", "compress_rate"}` or less) is recognised by its
    layer names, and its rank and widths by the shapes of its weights.  arch, rank, compress_rate: what it is expected
    to be.  net: the dense form of a network that `norton.build` does not know; it is not changed.

    A file of `norton.save` may name the path of a constructor, such as `torchvision.models.resnet18` or one of your
    own: loading imports that path and calls it.  Outside of `torchvision.models` it does so only for a path that you
    named yourself, here as arch= or before in `norton.build`; nothing in a file is ever run otherwise.

    Raises InputError if the file is missing, truncated, holds anything but tensors and plain data, or is of another
    network, rank or rates than told.
    """
    return rebuild(read(path), path, arch=arch, rank=rank, compress_rate=compress_rate, net=net)


def holds_detector(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is a detector, ours or published."""
    return "detector" in content or any(key.startswith("roi_heads.") for key in content["state_dict"])


def read(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint file, compressed or not, with a `state_dict`; code is refused, never run."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the path of a file written by norton.save or published")
    try:
        content = torch.load(coding.opened(path), map_location="cpu", weights_only=True)
        if isinstance(content, Mapping) and "packed" in content:
            content = {**content, "state_dict": coding.unpack(content["packed"])}
            del content["packed"]
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, because it holds code or is no checkpoint ({first_line(error)})") from None
    except (*UNREADABLE, lzma.LZMAError) as error:
        raise InputError(
            f"{path}: not a whole checkpoint ({first_line(error)}); it may be truncated, fetch or write it again"
        ) from None
    if isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
        content = {"state_dict": content}
    if isinstance(content, Mapping) and "state_dict" not in content and isinstance(content.get("model"), Mapping):
        content = {**content, "state_dict": content["model"]}  # as torchvision's detection scripts write it
    if not isinstance(content, Mapping) or not isinstance(content.get("state_dict"), Mapping):
        raise InputError(f"{path}: holds no state_dict, so it is no checkpoint of a network")
    state = {str(key).removeprefix("module."): value for key, value in content["state_dict"].items()}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path}: its state_dict is empty or holds something else than tensors")
    if "format" not in content and not isinstance(content.get("metrics"), Mapping):
        content = {**content, "metrics": {}}  # a published file may have anything there
    return {**content, "state_dict": state}


def rebuild(
    content: Mapping[str, Any],
    path: str | Path = "checkpoint",
    *,
    arch: str | None = None,
    rank: int | None = None,
    compress_rate: str | Sequence[float] | None = None,
    net: nn.Module | None = None,
) -> nn.Module:
    """The network of a checkpoint's content, see `load`; path: for messages."""
    published, state = "format" not in content, content["state_dict"]
    rebuilt = network_of_shapes(state, path, arch) if published else _from_plan(content, path, arch, net)
    load_strictly_(rebuilt, state, path)
    if published:
        _check_stated(rebuilt, path, content.get("rank"), content.get("compress_rate"), "the file says")
    _check_stated(rebuilt, path, rank, compress_rate, "told")
    return rebuilt.eval()


def identify(state_dict: Mapping[str, Tensor]) -> str | None:
    """The architecture whose layers have these names, whatever the rank and rates."""
    layers = {key.split(".feature.")[0].removesuffix(".weight") for key in state_dict if key.endswith(".weight")}
    for arch in NETWORKS:
        with torch.device("meta"):
            names = dense_network(arch).state_dict()
        if layers == {key.removesuffix(".weight") for key in names if key.endswith(".weight")}:
            return arch
    return None


def _from_plan(content: Mapping[str, Any], path, arch: str | None, net: nn.Module | None) -> nn.Module:
    if not isinstance(content["format"], int) or content["format"] != FORMAT:
        raise InputError(f"{path}: format {content['format']!r} is not {FORMAT}; use the Norton version that wrote it")
    types = {"plan": list, "metrics": dict, "lineage": list, "arch": str | None, "num_classes": int | None}
    content = {"input_size": None, **content}  # which older files lack
    types["input_size"] = list | None
    wrong = [key for key, kind in types.items() if key not in content or not isinstance(content[key], kind)]
    if wrong:
        raise InputError(f"{path}: its {', '.join(wrong)} are missing or of the wrong type; write the file again")
    if arch is not None and content["arch"] != arch:
        raise InputError(f"{path}: holds a {content['arch'] or 'network of its own'}, not a {arch} as told")
    if net is None and content["arch"] is not None and is_path(content["arch"]):
        if arch is not None:
            tell(arch)
        check_told(content["arch"], path)
    with _without_values(content["arch"]):
        if net is not None:
            dense = copy.deepcopy(net).to("meta")
            if content["input_size"] is not None:
                dense.input_size = tuple(content["input_size"])
        elif content["arch"] is None:
            raise InputError(f"{path}: its network is none of norton.build; pass its dense form as net=")
        else:
            dense = dense_network(content["arch"], content["num_classes"], content["input_size"])
        try:
            return apply_plan_(dense, content["plan"])
        except (LookupError, AttributeError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"{path}: its plan does not fit the network ({first_line(error)})") from None


@contextmanager
def _without_values(arch: str | None) -> Iterator[None]:
    """Build networks on the meta device; constructors from elsewhere may need values, and draw random ones."""
    if arch is not None and is_path(arch):
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.device("meta"):
            yield


def network_of_shapes(state: Mapping[str, Tensor], path, arch: str | None = None) -> nn.Module:
    """The network on the meta device that has a published file's names and shapes, or the nearest to them."""
    found = identify(state)
    if arch is not None and found is not None and arch != found:
        raise InputError(f"{path}: holds a {found}, not a {arch} as told")
    arch = arch or found
    if arch is None:
        raise InputError(f"{path}: its layers are those of none of {', '.join(NETWORKS)}")
    linear = [value for key, value in state.items() if key.endswith(".weight") and value.dim() == 2]
    if not linear:
        raise InputError(f"{path}: holds no linear layer, so it is no {arch}")
    classes, nearest, fewest = len(linear[-1]), None, len(state) + 1
    with torch.device("meta"):
        if found is None:
            return dense_network(arch, classes)  # the strict loading names what is missing
        for plan in _possible_plans(dense_network(arch, classes), state):
            try:
                net = apply_plan_(dense_network(arch, classes), plan)
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


def _check_stated(net: nn.Module, path, rank, compress_rate, by: str) -> None:
    """Compare rank and rates that somebody states with what the weights are."""
    if rank is None and compress_rate is None:
        return
    if rank is not None and not isinstance(rank, int):
        raise InputError(f"{path}: its weights tell its ranks; leave rank={rank!r} out")
    ranks = ranks_of(net)
    if rank is not None and ranks != {rank}:
        raise InputError(f"{path}: has rank {', '.join(sorted(map(str, ranks)))}, not {rank} as {by}")
    if compress_rate is not None:
        with _without_values(net.arch):
            stated = build(net.arch, 0, compress_rate, net.num_classes)
        if widths_of(stated) != widths_of(net):
            raise InputError(f"{path}: its layers have other widths than compress_rate={compress_rate} gives, as {by}")


def ranks_of(net: nn.Module) -> set[int | tuple[int, ...]]:
    """The ranks of the decomposed layers, tuples where a method has several, {0} for none."""
    return {layer.rank for layer in net.modules() if is_decomposed(layer)} or {0}


def widths_of(net: nn.Module) -> dict[str, int]:
    """First writer of each channel axis → its filters."""
    wiring = wiring_of(net)
    return {wiring.name(axis): wiring.width(axis) for axis in wiring.writers}


def load_strictly_(net: nn.Module, state: Mapping[str, Tensor], path) -> None:
    """Give a network a file's weights, in place.  Raises InputError naming the first layer that differs."""
    expected = net.state_dict()
    wrong = [key for key in expected if key not in state] + [key for key in state if key not in expected]
    if wrong:
        raise InputError(f"{path}: {len(wrong)} names do not match {type(net).__name__}, first {wrong[0]!r}")
    for key, value in expected.items():
        if value.shape != state[key].shape:
            raise InputError(
                f"{path}: {key} is {tuple(state[key].shape)} in the file, where {tuple(value.shape)} would fit "
                "its other layers; write or fetch it again"
            )
        if state[key].layout != torch.strided or state[key].is_floating_point() != value.is_floating_point():
            raise InputError(
                f"{path}: {key} is {state[key].dtype}, {state[key].layout}; expected {value.dtype}, strided"
            )
        if state[key].is_floating_point() and not state[key].isfinite().all():
            raise InputError(f"{path}: {key} holds values that are not finite")
    if len({value.dtype for value in state.values() if value.is_floating_point()}) > 1:
        raise InputError(f"{path}: mixes precisions; convert all of its tensors to one")
    net.load_state_dict(dict(state), strict=True, assign=True)
