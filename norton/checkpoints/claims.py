"""What checkpoints claim: in the file, by its name, and in the registry beside it, which knows its checksum too."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from norton.checkpoints.published_names import PublishedName, parse_name
from norton.common.checks import is_number
from norton.common.errors import InputError
from norton.measure.counting import complexity
from norton.models import build

REGISTRY = "registry.yaml"
SCORES = {  # of each task, the one that decides first
    "classification": {"top1": "top-1 %", "top5": "top-5 %"},
    "segmentation": {"miou": "mIoU %", "pixel_accuracy": "pixel accuracy %"},
}
DECISIVE = tuple(next(iter(scores)) for scores in SCORES.values())
COUNTS = {"macs": "MACs", "params": "params"}
QUANTITIES = {**{name: label for scores in SCORES.values() for name, label in scores.items()}, **COUNTS}

Claim = Mapping[str, Any]  # quantity → value; `data`: what the accuracy was measured on


def decisive(measured: Mapping[str, Any]) -> str:
    """The name of the score that decides, out of what was measured."""
    return next(name for name in DECISIVE if name in measured)


def claims_of_file(content: Mapping[str, Any], path: str | Path) -> Claim:
    """What the metrics in a file claim.  Raises InputError for a claim that is no number."""
    metrics = content.get("metrics")
    return _checked(metrics if metrics is not None else {}, f"{path}: its metrics")


def claims_of_name(name: PublishedName, num_classes: int | None = None) -> Claim:
    """Accuracy as the name says; counts as its network, rank and rates give them, for so many classes.

    Raises InputError where no such network has that rank and those rates.
    """
    cost = complexity(build(name.arch, name.rank, name.compress_rate, num_classes))
    return {"top1": name.top1, "macs": cost.macs, "params": cost.params}


def claims_of_entry(entry: Mapping[str, Any]) -> Claim:
    """What a registry's entry claims."""
    return {key: value for key, value in entry.items() if key in (*QUANTITIES, "data") and value is not None}


def _checked(metrics: Any, where: str) -> Claim:
    """The quantities and the data in a mapping, as plain numbers and text."""
    if not isinstance(metrics, Mapping):
        raise InputError(f"{where} are {type(metrics).__name__}; expected names with values, e.g. top1: 93.8")
    claim = {}
    for key, value in metrics.items():
        if key not in (*QUANTITIES, "data") or value is None:
            continue
        value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if key == "data":
            if not isinstance(value, str):
                raise InputError(f"{where}: data is {value!r}; expected the name of a dataset")
        elif not is_number(value):
            raise InputError(f"{where}: {key} is {value!r}, which is not a number")
        claim[key] = value
    return claim


def read_registry(path: str | Path) -> dict[str, dict[str, Any]]:
    """File name → its entry in a registry: sha256 (None if unknown), data, and claims.

    Raises InputError for a file that is missing or no registry.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise InputError(f"no registry at {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected file names with their claims")
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise InputError(f"{path}: {name!r} is no file name; quote it")
        digest = entry.get("sha256", 0) if isinstance(entry, dict) else 0
        if not (digest is None or (isinstance(digest, str) and re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", digest))):
            raise InputError(f"{path}: {name} needs a sha256 (64 digits, quoted; null if unknown) and claims")
        _checked(entry, f"{path}: {name}")
    return entries


def registry_entry(path: str | Path) -> dict[str, Any] | None:
    """A checkpoint's entry in the registry of its folder, after its checksum was found right; None without one."""
    path = Path(path)
    registry = path.parent / REGISTRY
    if not registry.is_file():
        return None
    for name, entry in read_registry(registry).items():
        if same_file_name(name, path.name):
            check_checksum(path, entry)
            return entry
    return None


def find_listed(folder: Path, name: str) -> Path | None:
    """The file that a registry lists, in whatever spelling its name has; None where it is absent."""
    if (folder / name).is_file():
        return folder / name
    return next((path for path in sorted(folder.iterdir()) if path.is_file() and same_file_name(name, path.name)), None)


def same_file_name(first: str, second: str) -> bool:
    """Whether two file names are one, or spell the same published name."""
    try:
        return first == second or parse_name(first) == parse_name(second)
    except InputError:
        return False


def check_checksum(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise InputError if a file is not the one that its registry entry describes."""
    if entry["sha256"] is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != entry["sha256"].strip().lower():
        raise InputError(
            f"{path}: its SHA-256 is {found}, the registry has {entry['sha256']}; fetch it again, or, if it is yours, "
            "write its own sum and claims there"
        )
