"""What a checkpoint claims, in its file, its name and the registry beside it, held against what is measured."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from norton.checkpoints.published_names import PublishedName, parse_name
from norton.checkpoints.rebuilding import ranks_in, widths_of
from norton.common.checks import is_number
from norton.common.errors import InputError
from norton.measure.counting import complexity
from norton.models import build

REGISTRY = "registry.yaml"
TOLERANCE = 0.05  # percentage points, for accuracies; counts must be met exactly
QUANTITIES = {"top1": "top-1 %", "top5": "top-5 %", "macs": "MACs", "params": "params"}
HOLDS, FAILS, CANNOT_BE_JUDGED = 0, 1, 2  # exit codes of `evaluate.py`
_ROUNDING = 1e-4  # of accuracies that were computed in float32

Claim = Mapping[str, Any]  # quantity → value; `data`: what the accuracy was measured on


@dataclass(frozen=True)
class Verdict:
    """code: HOLDS, FAILS or CANNOT_BE_JUDGED.  text: for people.  rows: a table of claimed against measured."""

    code: int
    text: str
    rows: list[dict[str, Any]]


def of_file(content: Mapping[str, Any], path: str | Path) -> Claim:
    """What the metrics in a file claim.  Raises InputError for a claim that is no number."""
    metrics = content.get("metrics")
    return _checked(metrics if metrics is not None else {}, f"{path}: its metrics")


def of_name(name: PublishedName, num_classes: int | None = None) -> Claim:
    """Accuracy as the name says; counts as its network, rank and rates give them, for so many classes.

    Raises InputError where no such network has that rank and those rates.
    """
    cost = complexity(build(name.arch, name.rank, name.compress_rate, num_classes))
    return {"top1": name.top1, "macs": cost.macs, "params": cost.params}


def of_registry(entry: Mapping[str, Any]) -> Claim:
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


def disagreements(name: PublishedName, net: nn.Module) -> list[str]:
    """Where the name says something else of the network than the file holds."""
    if name.arch != net.arch:
        return [f"the name says {name.arch}, the file holds a {net.arch}"]
    found, ranks = [], ranks_in(net)
    if ranks != {name.rank}:
        found.append(f"the name says rank {name.rank}, the file holds rank {', '.join(sorted(map(str, ranks)))}")
    try:
        widths = widths_of(build(name.arch, 0, name.compress_rate, net.num_classes))
    except InputError as error:
        return [*found, f"the name says rates {name.compress_rate}, which fit no {name.arch} ({error})"]
    if widths != widths_of(net):
        found.append(f"the name says rates {name.compress_rate}, the layers in the file have other widths")
    return found


def judge(
    claims: Mapping[str, Claim], measured: Mapping[str, Any], *, lies: Sequence[str] = (), missing: str = ""
) -> Verdict:
    """Compare every claim with what was measured.

    claims: source (`file`, `name`, `registry`) → its claim.  measured: quantity → value, and `data`, what the
    accuracies were measured on; a claim about other data is left out.  lies: what the name says wrongly of the network,
    see `disagreements`.  missing: why accuracies are not among what was measured, or claims not among the claims.
    """
    rows, wrong, judged = [], list(lies), False
    for quantity, label in QUANTITIES.items():
        row, agreed = {"": label}, []
        for source, claim in claims.items():
            row[f"claimed by {source}"] = _shown(quantity, claim.get(quantity))
            if claim.get(quantity) is None or measured.get(quantity) is None:
                continue
            if quantity in ("top1", "top5") and claim.get("data", measured.get("data")) != measured.get("data"):
                continue
            agreed.append(_agree(quantity, claim[quantity], measured[quantity]))
            judged |= quantity == "top1"
            if not agreed[-1]:
                told, found = _shown(quantity, claim[quantity]), _shown(quantity, measured[quantity])
                wrong.append(f"the {source} claims {label.replace(' %', '')} {told}, measured {found}")
        row["measured"] = _shown(quantity, measured.get(quantity))
        row["holds"] = None if not agreed else "yes" if all(agreed) else "no"
        rows.append(row)
    if wrong:
        return Verdict(FAILS, "does not hold: " + "; ".join(wrong), rows)
    if judged:
        return Verdict(HOLDS, f"holds (accuracy to {TOLERANCE} points, counts exactly)", rows)
    claimed = any(claim.get("top1") is not None for claim in claims.values())
    reasons = [missing] if claimed else ["no accuracy is claimed", missing]
    return Verdict(CANNOT_BE_JUDGED, f"cannot be judged: {'; '.join(filter(None, reasons))}", rows)


def _agree(quantity: str, claimed: float, measured: float) -> bool:
    if quantity in ("macs", "params"):
        return claimed == measured
    return abs(claimed - measured) <= TOLERANCE + _ROUNDING


def _shown(quantity: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if quantity in ("macs", "params") else f"{value:.2f}"


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


def listed(path: str | Path) -> dict[str, Any] | None:
    """A checkpoint's entry in the registry of its folder, after its checksum was found right; None without one."""
    path = Path(path)
    registry = path.parent / REGISTRY
    if not registry.is_file():
        return None
    for name, entry in read_registry(registry).items():
        if same_name(name, path.name):
            check_sum(path, entry)
            return entry
    return None


def locate(folder: Path, name: str) -> Path | None:
    """The file that a registry lists, in whatever spelling its name has; None where it is absent."""
    if (folder / name).is_file():
        return folder / name
    return next((path for path in sorted(folder.iterdir()) if path.is_file() and same_name(name, path.name)), None)


def same_name(first: str, second: str) -> bool:
    """Whether two file names are one, or spell the same published name."""
    try:
        return first == second or parse_name(first) == parse_name(second)
    except InputError:
        return False


def check_sum(path: Path, entry: Mapping[str, Any]) -> None:
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
