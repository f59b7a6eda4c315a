"""The file format: plain data and tensors, from which a network can be rebuilt (`norton.checkpoints.rebuilding`)."""

import io
import lzma
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from norton.checkpoints import packing
from norton.checkpoints.about_data import about_data
from norton.checkpoints.matching import CONTAINERS, Found, state_dict_in
from norton.common.errors import InputError, first_line, warn
from norton.common.files import write_whole
from norton.graph.input_sizes import stated_batch, stated_size
from norton.graph.inputs import stated_example
from norton.graph.layers import network_in
from norton.graph.plan import plan_of
from norton.models import NETWORKS
from norton.models.foreign import is_path

FORMAT = 1
_UNREADABLE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    ArithmeticError,
    SafetensorError,
)
_BEGINNINGS = (b"PK\x03\x04", b"\x80", packing.XZ)  # of zip archives, pickles and what is compressed


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
    What the network remembers of its data is written too, see `norton.checkpoints.about_data`: of a command's network
    also the folder that its images were in.
    A network from elsewhere than `norton.build` can be saved too; `load` then needs its dense form, and a warning says
    so.  Of one that `norton.build` made by the path of a constructor the file holds the path.  Raises InputError for a
    deployed network, which `load` could not rebuild.
    """
    net = network_in(net)
    if hasattr(net, "deployment"):
        raise InputError(
            f"{path}: the network is a deployed one; save the network it was made of, and its choice with "
            ".deployment.save(FILE) for norton.deploy(net, example, choice=FILE), or use "
            "norton.deployment.export.to_program"
        )
    arch = getattr(net, "arch", None)
    if not (isinstance(arch, str) and (arch in NETWORKS or is_path(arch))):
        warn(
            f"{path}: norton.load will need the dense network, net=, because norton.build did not make it; a file "
            "rebuilds alone what norton.build makes, e.g. norton.build('torchvision.models.resnet18') or the path of a "
            "constructor of your own"
        )
    size = stated_size(net)
    about = {"arch": arch, "num_classes": getattr(net, "num_classes", None)}
    about |= {"input_size": None if size is None else list(size), "input_batch": stated_batch(net)}
    about |= {"kwargs": net.arch_kwargs} if hasattr(net, "arch_kwargs") else {}
    about |= about_data(net) | {"example": stated_example(net)}
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
        **({"packed": packing.pack(state)} if compress else {"state_dict": state}),
        "metrics": dict(metrics or {}),
        "lineage": [dict(step) for step in lineage],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_whole(path, packing.compress(buffer.getvalue()) if compress else buffer.getvalue())


def read(path: str | Path) -> dict[str, Any]:
    """The plain content of a checkpoint file, compressed or not, with a `state_dict`; code is refused, never run.

    Raises InputError for a file that is missing, damaged, or something else than a checkpoint of a network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the path of a file written by norton.save or published")
    content = _plain_content(path)
    found = state_dict_in(content)
    if found is None or not found.state:
        raise InputError(f"{path}: {_without_weights(content)}")
    about = {} if found.key == "" else content
    if not is_own(about) and not isinstance(about.get("metrics"), Mapping):
        about = {**about, "metrics": {}}  # a published file may have anything there
    return {**about, "state_dict": found.state, "assumed": _assumed(found)}


def is_own(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is of `norton.save`, whatever its version; other programs may call something format."""
    return type(content.get("format")) is int or "plan" in content


def _assumed(found: Found) -> list[str]:
    """What is taken for granted of where a file has its weights."""
    others = ", ".join(found.others)
    if found.key == "":
        return [f"{others} beside its tensors is left out"] if others else []
    if found.key == "state_dict" and not others:
        return []
    return [f"its weights are those under {found.key}{f', not under {others}' if others else ''}"]


def _without_weights(content: Any) -> str:
    """Why there are no weights in what a file holds."""
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if isinstance(state, Mapping):
        odd = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
        return (
            f"its state_dict holds something else than tensors: {', '.join(odd[:3])}"
            if odd
            else "its state_dict is empty"
        )
    return f"holds no state_dict of a network; looked for tensors alone, and under {', '.join(CONTAINERS)}"


def _plain_content(path: Path) -> Any:
    """What torch.load finds in a file, unpacked; raises InputError, with the reason in a line, where it refuses it."""
    if (other := _other_kind(path)) is not None:
        raise InputError(
            f"{path}: refused, because it is {other} and no checkpoint; give a file written by norton.save or published"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(packing.decompressed(path), map_location="cpu", weights_only=True)
        if isinstance(content, Mapping) and "packed" in content:
            content = {**content, "state_dict": packing.unpack(content["packed"])}
            del content["packed"]
        return content
    except pickle.UnpicklingError as error:
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds code ({held[1]}); write it again from net.state_dict()" if held else "it is no checkpoint"
        raise InputError(f"{path}: refused, because {why}") from None
    except (*_UNREADABLE, lzma.LZMAError) as error:
        if "TorchScript" in str(error):
            raise InputError(f"{path}: refused, because it holds code (TorchScript); save net.state_dict()") from None
        reason = re.split(r"\. (?=[A-Z])", first_line(error))[0]  # what follows is advice for other programs
        raise InputError(
            f"{path}: not a whole checkpoint ({reason}); it may be truncated, fetch or write it again"
        ) from None


def _other_kind(path: Path) -> str | None:
    """What a file is that does not begin as torch.save writes it; None for one that does."""
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(_BEGINNINGS) or path.suffix == ".safetensors":
        return None
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, in the place of a file that `git lfs pull` fetches,"
    if not start:
        return "an empty file"
    return "a text file" if all(byte >= 32 or byte in b"\t\n\r" for byte in start) else "a file of another kind"


def holds_detector(content: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's content is a detector, ours or published."""
    return "detector" in content or any(".roi_heads." in f".{key}" for key in content["state_dict"])
