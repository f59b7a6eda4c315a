"""Networks from elsewhere: torchvision's, or a user's own, named by the dotted path of what constructs them."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from norton.common.checks import checked_input_size
from norton.common.errors import InputError
from norton.common.extras import optional
from norton.graph.logits import logits_in
from norton.graph.meta import run_on_meta

OPEN = "torchvision.models."  # constructors that anybody may name
SEGMENTATION = "torchvision.models.segmentation"
TIMM = "timm/"  # before the name of a network of timm, which anybody may name too
# Arguments that a network takes elsewhere: trained weights would be fetched, or read from a file that may hold code.
ELSEWHERE = {
    "num_classes": "num_classes",
    **dict.fromkeys(("weights", "weights_backbone", "pretrained", "checkpoint_path"), "weights"),
    **dict.fromkeys(("pretrained_cfg", "pretrained_cfg_overlay"), "weights"),
}
ADVICE = "; its arguments are kwargs in Python, model.kwargs.NAME=VALUE from the shell"
PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")


def is_path(arch: str) -> bool:
    """Whether the name of a network is the path of a constructor, such as `torchvision.models.resnet18`."""
    return "." in arch or arch.startswith(TIMM)


def check_named(path: str, arch: str | None, file: object, *, with_arguments: bool = False) -> None:
    """Raise InputError for a constructor that a file names and nobody else: to load the file would run that code.

    arch: what the user names.  with_arguments: the file says with which to call it, so that none is known to be safe.
    """
    if (with_arguments or not path.startswith((OPEN, TIMM))) and path != arch:
        raise InputError(
            f"{file}: its network is made by {path}, which loading would import and call; if that is code you would "
            f"run, say so with model.arch={path} from the shell, with arch={path!r} in norton.load"
        )


def constructor(path: str) -> Callable[..., nn.Module]:
    """The function or class of that path; its module is imported, which runs it.

    Raises InputError for what is no path of names, cannot be imported or cannot be called.
    """
    if path.startswith(TIMM):
        return _of_timm(path.removeprefix(TIMM))
    if not PATH.fullmatch(path):
        raise InputError(f"{path!r} is no path of a constructor; write module.name, e.g. torchvision.models.resnet18")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
        if found is None and module == OPEN[:-1]:  # so that one may leave out the folder that torchvision keeps it in
            found = getattr(importlib.import_module(SEGMENTATION), name, None)
    except ImportError as error:
        raise InputError(f"network {path!r}: cannot import {module} ({error}); is it on PYTHONPATH?") from None
    if not callable(found):
        hint = "; with model=torchvision give name=, e.g. name=mobilenet_v2" if path.endswith(".None") else ""
        raise InputError(f"network {path!r}: {module} has nothing callable of the name {name!r}{hint}")
    return found


def _of_timm(name: str) -> Callable[..., nn.Module]:
    """The constructor of a network of timm, without trained weights."""
    with optional():
        import timm
    if not timm.is_model(name.partition(".")[0]):
        alike = ", ".join(timm.list_models(f"*{name.partition('.')[0]}*")[:5])
        raise InputError(
            f"timm has no network {name!r}" + (f"; it has {alike}" if alike else "; see timm.list_models()")
        )
    return partial(timm.create_model, name)


def checked_arguments(path: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a constructor.  Raises InputError for those that no file could hold, or that are given elsewhere."""
    for name, value in kwargs.items():
        if name in ELSEWHERE and (name == "num_classes" or path.startswith((OPEN, TIMM))):
            raise InputError(f"{path}: kwargs has {name}, which is given as {ELSEWHERE[name]}=; leave it out of kwargs")
        if not isinstance(name, str) or not _is_plain(value):
            raise InputError(
                f"{path}: kwargs has {name}={value!r}; a file can hold numbers, words, true, false, null, and lists "
                "and mappings of them; let a constructor of your own make the rest"
            )
    return dict(kwargs)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def foreign_network(
    path: str,
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network that a constructor makes, which remembers what it takes to make it again.

    num_classes: passed on to the constructor; by default its own.  input_size: (channels, height, width) of an image,
    by default the network's `input_size`, or the first of some usual sizes that it takes.  kwargs: more arguments.

    Raises InputError where the path leads nowhere, or to something else than a classifier, of images or of pixels, of
    so many classes.
    """
    make = constructor(path)
    asked = num_classes is not None and _takes(make, "num_classes")  # else it may make as many all the same
    options: dict[str, Any] = {"num_classes": num_classes} if asked else {}
    given = checked_arguments(path, kwargs or {})
    options |= given
    if path.startswith(OPEN) and "weights_backbone" in inspect.signature(make).parameters:
        options["weights_backbone"] = None  # which torchvision would fetch
    try:
        net = make(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} cannot be called with {options or 'nothing'}: {error}{ADVICE}") from None
    if not isinstance(net, nn.Module):
        raise InputError(f"{path} makes a {type(net).__name__}, which is no network (torch.nn.Module)")
    if input_size is not None:
        net.input_size = checked_input_size(input_size)
    net.input_size, _ = run_on_meta(net, training=True)
    classes = _classes(net)
    if num_classes not in (None, classes) and not asked:
        raise InputError(f"{path} takes no num_classes; leave it out, or give it that argument")
    if num_classes not in (None, classes):
        raise InputError(f"{path} was asked for {num_classes} classes, and its output is of size {classes}")
    net.arch, net.num_classes = path, classes
    if given:
        net.arch_kwargs = given
    return net


def _takes(make: Callable, name: str) -> bool:
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # built in, without a signature
        return False
    return any(p.name == name or p.kind == p.VAR_KEYWORD for p in parameters)


def _classes(net: nn.Module) -> int | None:
    """The width of what a network returns: (N, classes), or (N, classes, height, width), also as `out` of a dict.

    None for anything else.
    """
    output = logits_in(run_on_meta(net, training=False)[1])
    return output.shape[1] if isinstance(output, torch.Tensor) and output.dim() in (2, 4) else None
