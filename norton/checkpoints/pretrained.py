"""Networks with weights that others trained: torchvision's and timm's by name, or a file's."""

import hashlib
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from norton.checkpoints.files import is_own, read
from norton.checkpoints.heads import with_fresh_head
from norton.checkpoints.matching import check_matched, check_one_network, match
from norton.checkpoints.rebuilding import load_strictly_, say_assumed
from norton.common.errors import InputError, first_line
from norton.common.extras import optional
from norton.models import dense_network
from norton.models.foreign import OPEN, TIMM

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


class _Published(NamedTuple):
    """state: a state dict.  size: of the images, (channels, height, width).  normalisation: their mean and std."""

    state: dict[str, Tensor]
    size: tuple[int, int, int] | None = None
    normalisation: Normalisation | None = None
    assumed: Sequence[str] = ()


def pretrained(
    arch: str,
    weights: str | Path = "DEFAULT",
    num_classes: int | None = None,
    input_size: Sequence[int] | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> nn.Module:
    """A network with trained weights, in evaluation mode; `norton.build` gives one with random weights.

    arch: as in `norton.build`, e.g. `torchvision.models.resnet50` or `timm/resnet18`.  weights: the name under which
    the library publishes them (DEFAULT: its best), read from its cache or fetched; or the path of a file, matched as
    `norton.load` does.  num_classes: another number replaces the classifier by a fresh one, which a warning says.
    input_size: (channels, height, width); by default that of the weights.  kwargs: as in `norton.build`.
    strict: refuse what a warning would say.

    The network remembers how images were normalised (`net.normalisation`), where the library says it.  Raises
    InputError for unknown names, files that are missing or of another network, and where nothing can be fetched.
    """
    found = _source(arch, weights)(arch, weights)
    size = input_size if input_size is not None or not _takes_size(arch) else found.size
    net = dense_network(arch, num_classes, size, kwargs)
    expected = net.state_dict()
    check_one_network(found.state, expected, weights)
    matched = match(found.state, expected)
    check_matched(matched, expected, weights, arch)
    state, assumed = matched.state, [*found.assumed, *matched.assumed]
    if num_classes is not None:
        state, replaced = with_fresh_head(state, net)
        assumed += [replaced] if replaced else []
    load_strictly_(net, state, weights)
    say_assumed(weights, assumed, strict)
    if found.normalisation is not None:
        net.normalisation = found.normalisation
    return net.eval()


def _source(arch: str, weights: str | Path) -> Callable[[str, Any], _Published]:
    """What knows where the weights are."""
    if Path(weights).is_file() or not re.fullmatch(r"\w+", str(weights)):
        return _of_file
    if arch.startswith(OPEN):
        return _of_torchvision
    if arch.startswith(TIMM):
        return _of_timm
    raise InputError(f"weights={weights}: nothing publishes weights of {arch} by name; give the path of a file")


def _takes_size(arch: str) -> bool:
    return arch.startswith((OPEN, TIMM))


def _of_file(arch: str, weights: str | Path) -> _Published:
    content = read(weights)
    if is_own(content):
        raise InputError(f"{weights}: is a checkpoint of norton.save; open it as such, with checkpoint= or norton.load")
    return _Published(content["state_dict"], assumed=content["assumed"])


def _of_torchvision(arch: str, weights: str | Path) -> _Published:
    from torchvision.models import get_model_weights

    try:
        enum = get_model_weights(arch.rpartition(".")[2])
    except ValueError:
        raise InputError(f"weights={weights}: torchvision publishes none of {arch}; give the path of a file") from None
    known = [*dict.fromkeys(["DEFAULT", *(one.name for one in enum)])]
    if weights not in known:
        raise InputError(
            f"weights={weights} are unknown for {arch}; torchvision has {', '.join(known)}; or give a file"
        )
    chosen = enum[str(weights)]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(chosen.url).path).name
    check_published(path, weights)
    try:
        state = chosen.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or another checksum
        raise InputError(
            f"weights={weights}: looked for {path}, and could not fetch {chosen.url} ({first_line(error)}); put the "
            "file there"
        ) from None
    preset = chosen.transforms()
    crop = getattr(preset, "crop_size", None)
    side = crop[0] if isinstance(crop, list | tuple) else crop
    normalisation = (tuple(preset.mean), tuple(preset.std)) if hasattr(preset, "mean") else None
    return _Published(state, (3, side, side) if side else None, normalisation)


def check_published(path: Path, weights: str | Path) -> None:
    """Raise InputError for a file in the cache whose checksum is not the one in its name.

    torch checks what it fetches alone, and takes whatever lies there by that name.
    """
    published = re.search(r"-([a-f0-9]{8,})\.", path.name)
    if published is None or not path.is_file():
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(published[1]):
        raise InputError(
            f"weights={weights}: {path} is damaged or another file: its checksum is {found[:8]}, not {published[1]}; "
            "remove it, so that it is fetched again"
        )


def _of_timm(arch: str, weights: str | Path) -> _Published:
    with optional():
        import timm
    name = arch.removeprefix(TIMM)
    name = name if weights == "DEFAULT" else f"{name.partition('.')[0]}.{weights}"
    try:
        net = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(f"weights={weights}: timm has no weights for {name} ({first_line(error)})") from None
    config = net.pretrained_cfg
    return _Published(net.state_dict(), tuple(config["input_size"]), (tuple(config["mean"]), tuple(config["std"])))
