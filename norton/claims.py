"""What a checkpoint claims, in its file, its name and the registry beside it, held against what is measured."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from norton.checkpoints import ranks_of, widths_of
from norton.counting import complexity
from norton.errors import InputError
from norton.models import build
from norton.names import PublishedName, parse_name

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


def collect(path: str | Path, content: Mapping[str, Any]) -> tuple[dict[str, Claim], PublishedName | None, str]:
    """Source (`file`, `name`, `registry`) → its claim; the name as read, and else why it could not be.

    Raises InputError where the registry beside the file has another checksum for it.
    """
    claims = {"file": {key: value for key, value in content.get("metrics", {}).items() if key in (*QUANTITIES, "data")}}
    name, problem = None, ""
    try:
        name = parse_name(path)
        claims["name"] = name_claim(name)
    except InputError as error:
        name, problem = None, str(error)
    if entry := listed(path):
        claims["registry"] = {key: value for key, value in entry.items() if key in (*QUANTITIES, "data")}
    return {source: claim for source, claim in claims.items() if claim}, name, problem


def name_claim(name: PublishedName) -> Claim:
    """Accuracy as the name says, counts as its network, rank and rates give them."""
    cost = complexity(build(name.arch, name.rank, name.compress_rate))
    return {"top1": name.top1, "macs": cost.macs, "params": cost.params}


def disagreements(name: PublishedName, net: nn.Module) -> list[str]:
    """Where the name says something else of the network than the file holds."""
    if name.arch != net.arch:
        return [f"the name says {name.arch}, the file holds a {net.arch}"]
    found, ranks = [], ranks_of(net)
    if ranks != {name.rank}:
        found.append(f"the name says rank {name.rank}, the file holds rank {', '.join(map(str, sorted(ranks)))}")
    if widths_of(build(name.arch, 0, name.compress_rate, net.num_classes)) != widths_of(net):
        found.append(f"the name says rates {name.compress_rate}, the layers in the file have other widths")
    return found


def judge(
    claims: Mapping[str, Claim], measured: Mapping[str, Any], *, lies: Sequence[str] = (), missing: str = ""
) -> Verdict:
    """Compare every claim with what was measured.

    measured: quantity → value; accuracies are left out where they could not be measured, and `missing` says why.
    lies: what the name says wrongly of the network, see `disagreements`.
    """
    rows, wrong = [], list(lies)
    for quantity, label in QUANTITIES.items():
        row = {"": label}
        agreed = []
        for source, claim in claims.items():
            row[f"claimed by {source}"] = _shown(quantity, claim.get(quantity))
            if claim.get(quantity) is None or measured.get(quantity) is None:
                continue
            agreed.append(_agree(quantity, claim[quantity], measured[quantity]))
            if not agreed[-1] and not (lies and source == "name" and quantity in ("macs", "params")):
                told, found = _shown(quantity, claim[quantity]), _shown(quantity, measured[quantity])
                wrong.append(f"the {source} claims {label.replace(' %', '')} {told}, measured {found}")
        row["measured"] = _shown(quantity, measured.get(quantity))
        row["holds"] = None if not agreed else "yes" if all(agreed) else "no"
        rows.append(row)
    if wrong:
        return Verdict(FAILS, "does not hold: " + "; ".join(wrong), rows)
    if not any(claim.get("top1") is not None for claim in claims.values()):
        return Verdict(CANNOT_BE_JUDGED, f"cannot be judged: no accuracy is claimed{missing and f' ({missing})'}", rows)
    if measured.get("top1") is None:
        return Verdict(CANNOT_BE_JUDGED, f"cannot be judged: {missing}", rows)
    return Verdict(HOLDS, f"holds (accuracy to {TOLERANCE} points, counts exactly)", rows)


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
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, dict):
        raise InputError(f"{path}: expected file names with their claims")
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256", 0), str | None):
            raise InputError(f"{path}: {name} needs a sha256 (quoted; null if unknown) and claims, e.g. top1: 93.8")
        for quantity in QUANTITIES:
            value = entry.get(quantity)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InputError(f"{path}: {name} has {quantity} {value!r}, which is not a number")
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
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if entry["sha256"] is not None and found != entry["sha256"]:
        raise InputError(
            f"{path}: its SHA-256 is {found}, the registry has {entry['sha256']}; fetch it again, or, if it is yours, "
            f"write its own sum and claims in {path.parent / REGISTRY}"
        )
