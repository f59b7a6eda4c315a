"""Networks from checkpoints: by the plan in a file of ours, by the shapes of weights in a published one."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from norton.checkpoints.about_data import TYPES, forget_classes_, is_normalisation, remember_
from norton.checkpoints.files import FORMAT, is_own, read
from norton.checkpoints.heads import other_classes, telling_apart, with_fresh_head
from norton.checkpoints.matching import check_matched, check_one_network, layer_of, match
from norton.checkpoints.published_layout import network_of_shapes
from norton.common.checks import checked_input_size
from norton.common.errors import InputError, first_line, warn
from norton.graph import wiring_of
from norton.graph.copies import copied
from norton.graph.inputs import remember_example_
from norton.graph.layers import is_decomposed, network_in
from norton.graph.plan import apply_plan_
from norton.models import build, dense_network
from norton.models.foreign import check_named, is_path


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    rank: int | None = None,
    compress_rate: str | Sequence[float] | None = None,
    num_classes: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    net: nn.Module | None = None,
    strict: bool = False,
) -> nn.Module:
    """The network of a checkpoint, in evaluation mode, on the CPU.

    Nothing else is needed: a published file (`{"state_dict", "rank", "compress_rate"}` or less) is recognised by its
    layer names, and its rank and widths by the shapes of its weights.  arch, rank, compress_rate: what it is expected
    to be.  num_classes: another number than the file's replaces the classifier by a fresh one, which a warning says.
    kwargs: arguments of the constructor that arch= names, for a file from elsewhere; one of `norton.save` has its own.
    net: the dense form of a network that `norton.build` does not know; it is not changed.

    A file of `norton.save` may name the path of a constructor, such as `torchvision.models.resnet18` or one of your
    own: loading imports that path and calls it.  Outside of `torchvision.models` it does so only for a path that you
    name here, as arch=, or not at all where you give net=; nothing in a file is ever run otherwise.

    A file from elsewhere holds tensors alone, perhaps inside of a container, under the names of a wrapper, in half
    precision, without counters of batches, with a classifier of another name: they are matched to the network that they
    are told or recognised to be, and a warning says what was taken for granted.  strict: refuse such files instead, and
    to replace a classifier.

    What it remembers of its data is on the network: `normalisation`, `classes` and `data_settings`, see
    `norton.checkpoints.about_data`.

    Raises InputError if the file is missing, truncated, holds anything but tensors and plain data, or is of another
    network, rank or rates than told.
    """
    how: dict[str, Any] = {"arch": arch, "rank": rank, "compress_rate": compress_rate, "num_classes": num_classes}
    return rebuild(read(path), path, **how, kwargs=kwargs, net=net, strict=strict)


def rebuild(
    content: Mapping[str, Any],
    path: str | Path = "checkpoint",
    *,
    arch: str | None = None,
    rank: int | None = None,
    compress_rate: str | Sequence[float] | None = None,
    num_classes: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
    net: nn.Module | None = None,
    input_size: Sequence[int] | None = None,
    strict: bool = False,
) -> nn.Module:
    """The network of a checkpoint's content, see `load`; path: for messages.

    input_size: (channels, height, width) of the images of a network of one's own, in the place of what the file or the
    network says.
    """
    published, state = not is_own(content), content["state_dict"]
    assumed: list[str] = []
    if published:
        rebuilt = net_of_names(state, path, arch, input_size, kwargs) if net is None else copied(network_in(net))
        state, assumed = _matched(content, rebuilt, path)
        if net is None and num_classes not in (None, rebuilt.num_classes):
            with _without_values(rebuilt.arch):
                rebuilt = telling_apart(rebuilt, num_classes)
    else:
        said = dict(content) if input_size is None else {**content, "input_size": list(checked_input_size(input_size))}
        said |= {} if num_classes is None else {"num_classes": num_classes}
        rebuilt = network_of_plan(said, path, arch, net)
        if kwargs and (own := getattr(rebuilt, "arch_kwargs", None)) != kwargs:
            raise InputError(f"{path}: its network was made with kwargs {own}, not {dict(kwargs)}; leave kwargs out")
    if num_classes is not None:
        state, replaced = with_fresh_head(state, rebuilt)
        if replaced:
            forget_classes_(rebuilt)
            assumed.append(replaced)
        elif net is not None and getattr(net, "num_classes", None) != num_classes:
            raise InputError(
                f"{path}: num_classes={num_classes} replaces nothing: the classifier of net= is of the file's size; "
                f"give a net of {num_classes} classes, or leave num_classes out"
            )
    elif net is not None and (classes := other_classes(state, rebuilt)):
        raise InputError(
            f"{path}: its classifier {classes.layers} tells {classes.own} classes apart, that of net= {classes.asked}; "
            f"num_classes={classes.asked} replaces it by a fresh one, which must be trained"
        )
    say_assumed(path, assumed, strict)
    load_strictly_(rebuilt, state, path)
    if published and ("compress_rate" in content or ranks_in(rebuilt) != {0}):  # else a process has that rank
        _check_stated(rebuilt, path, content.get("rank"), content.get("compress_rate"), "the file says")
    _check_stated(rebuilt, path, rank, compress_rate, "told")
    return rebuilt.eval()


def net_of_names(
    state: Mapping[str, Tensor],
    path: str | Path,
    arch: str | None,
    input_size: Sequence[int] | None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A network for a state dict alone: of the constructor that `arch` names, or whichever published one fits.

    It tells as many classes apart as the state dict does.
    """
    if arch is None or not is_path(arch):
        if kwargs:
            raise InputError(f"{path}: kwargs are arguments of a constructor; name it as arch=, or leave them out")
        return network_of_shapes(state, path, arch, input_size)
    with torch.random.fork_rng(devices=[]):
        net = dense_network(arch, None, input_size, kwargs)
        expected = net.state_dict()
        found = match(state, expected).state
        other = {layer_of(key): len(found[key]) for key, value in expected.items() if _differs(value, found.get(key))}
        classes = set(other.values())
        if len(classes) == 1 and net.num_classes is not None:
            return dense_network(arch, classes.pop(), input_size, kwargs)
    return net


def _differs(expected: Tensor, found: Tensor | None) -> bool:
    """Whether a tensor has another number of filters, and nothing else of another size."""
    return (
        found is not None
        and found.dim() > 0
        and found.shape != expected.shape
        and found.shape[1:] == expected.shape[1:]
    )


def _matched(content: Mapping[str, Any], net: nn.Module, path: str | Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a file from elsewhere under the names of a network, and what was taken for granted."""
    expected = net.state_dict()
    check_one_network(content["state_dict"], expected, path)
    matched = match(content["state_dict"], expected)
    check_matched(matched, expected, path, getattr(net, "arch", None) or type(net).__name__)
    return matched.state, [*content.get("assumed", ()), *matched.assumed]


def say_assumed(path: str | Path, assumed: Sequence[str], strict: bool) -> None:
    """Say what was taken for granted, a line each; strict: raise InputError instead."""
    if assumed and strict:
        raise InputError(f"{path}: refused, because strict: {'; '.join(assumed)}")
    if assumed:
        warn(f"{path}: {'; '.join(assumed)}")


def network_of_plan(content: Mapping[str, Any], path: str | Path, arch: str | None, net: nn.Module | None) -> nn.Module:
    if type(content.get("format")) is not int or content["format"] != FORMAT:
        raise InputError(
            f"{path}: format {content.get('format')!r} is not {FORMAT}; use the Norton version that wrote it"
        )
    types = {"plan": list, "metrics": dict, "lineage": list, "arch": str | None, "num_classes": int | None}
    older = dict.fromkeys(("input_size", "input_batch", "kwargs", *TYPES))  # which older files lack
    content = {**older, **content}
    types |= {"input_size": list | None, "input_batch": int | None, "kwargs": dict | None, **TYPES}  # type: ignore[misc]
    wrong = [key for key, kind in types.items() if key not in content or not isinstance(content[key], kind)]
    wrong += ["normalisation"] * (not wrong and not is_normalisation(content["normalisation"]))
    if wrong:
        raise InputError(f"{path}: its {', '.join(wrong)} are missing or of the wrong type; write the file again")
    if arch is not None and content["arch"] != arch:
        raise InputError(f"{path}: holds a {content['arch'] or 'network of its own'}, not a {arch} as told")
    if net is None and content["arch"] is not None and is_path(content["arch"]):
        check_named(content["arch"], arch, path, with_arguments=bool(content["kwargs"]))
    with nullcontext() if net is not None else _without_values(content["arch"]):
        if net is not None:
            dense = copied(network_in(net))  # with what it holds beside its state, such as buffers that no file has
            if content["input_size"] is not None:
                dense.input_size = tuple(content["input_size"])
        elif content["arch"] is None:
            raise InputError(f"{path}: its network is none of norton.build; pass its dense form as net=")
        else:
            dense = dense_network(*(content[key] for key in ("arch", "num_classes", "input_size", "kwargs")))
        if content["input_batch"] is not None:
            dense.input_batch = content["input_batch"]
        remember_example_(dense, content.get("example"))
        remember_(dense, content)
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


def _check_stated(net: nn.Module, path: str | Path, rank: Any, compress_rate: Any, by: str) -> None:
    """Compare rank and rates that somebody states with what the weights are."""
    if rank is None and compress_rate is None:
        return
    if rank is not None and not isinstance(rank, int):
        raise InputError(f"{path}: its weights tell its ranks; leave rank={rank!r} out")
    ranks = ranks_in(net)
    if rank is not None and ranks != {rank}:
        raise InputError(f"{path}: has rank {', '.join(sorted(map(str, ranks)))}, not {rank} as {by}")
    if compress_rate is not None:
        with _without_values(net.arch):
            stated = build(net.arch, 0, compress_rate, net.num_classes, kwargs=getattr(net, "arch_kwargs", None))
        if widths_of(stated) != widths_of(net):
            raise InputError(f"{path}: its layers have other widths than compress_rate={compress_rate} gives, as {by}")


def ranks_in(net: nn.Module) -> set[int | tuple[int, ...]]:
    """The ranks of the decomposed layers, tuples where a method has several, {0} for none."""
    return {layer.rank for layer in nn.Module.modules(net) if is_decomposed(layer)} or {0}


def widths_of(net: nn.Module) -> dict[str, int]:
    """First writer of each channel axis → its filters."""
    wiring = wiring_of(net)
    return {wiring.name(axis): wiring.width(axis) for axis in wiring.writers}


def load_strictly_(net: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
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
    trained = {name: parameter.requires_grad for name, parameter in net.named_parameters()}
    values = {key: value.detach() for key, value in state.items()}  # buffers may come as parameters
    net.load_state_dict(values, strict=True, assign=True)
    for name, parameter in net.named_parameters():  # of TorchScript modules, torch forgets it
        parameter.requires_grad_(trained[name])
