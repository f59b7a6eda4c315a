"""What a checkpoint claims held against what is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from norton.checkpoints.claims import COUNTS, DECISIVE, SCORES, Claim
from norton.checkpoints.published_names import PublishedName
from norton.checkpoints.rebuilding import ranks_in, widths_of
from norton.common.errors import InputError
from norton.models import build

TOLERANCE = 0.05  # percentage points, for accuracies; counts must be met exactly
HOLDS, FAILS, CANNOT_BE_JUDGED = 0, 1, 2  # exit codes of `evaluate.py`
_ROUNDING = 1e-4  # of accuracies that were computed in float32


@dataclass(frozen=True)
class Verdict:
    """code: HOLDS, FAILS or CANNOT_BE_JUDGED.  text: for people.  rows: a table of claimed against measured."""

    code: int
    text: str
    rows: list[dict[str, Any]]


def find_contradictions(name: PublishedName, net: nn.Module) -> list[str]:
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
    claims: Mapping[str, Claim], measured: Mapping[str, Any], *, contradictions: Sequence[str] = (), missing: str = ""
) -> Verdict:
    """Compare every claim with what was measured.

    claims: source (`file`, `name`, `registry`) → its claim.  measured: quantity → value, and `data`, what the
    accuracies were measured on; a claim about other data is left out.  contradictions: what the name says wrongly of
    the network, see `find_contradictions`.  missing: why accuracies are not among what was measured, or claims not
    among the claims.
    """
    rows: list[dict[str, Any]] = []
    wrong, judged = list(contradictions), False
    for quantity, label in _shown_quantities([*claims.values(), measured]).items():
        row: dict[str, Any] = {"": label}
        agreed: list[bool] = []
        for source, claim in claims.items():
            row[f"claimed by {source}"] = _shown(quantity, claim.get(quantity))
            if claim.get(quantity) is None or measured.get(quantity) is None:
                continue
            if quantity not in COUNTS and claim.get("data", measured.get("data")) != measured.get("data"):
                continue
            agreed.append(_agree(quantity, claim[quantity], measured[quantity]))
            judged |= quantity in DECISIVE
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
    claimed = any(claim.get(quantity) is not None for claim in claims.values() for quantity in DECISIVE)
    reasons = [missing] if claimed else ["no accuracy is claimed", missing]
    return Verdict(CANNOT_BE_JUDGED, f"cannot be judged: {'; '.join(filter(None, reasons))}", rows)


def _shown_quantities(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Quantity → its label, of the tasks that somebody scored, else of classification; and of what is counted."""
    known = {name for one in found for name, value in one.items() if value is not None}
    scored = [scores for scores in SCORES.values() if known & set(scores)] or [SCORES["classification"]]
    return {name: label for scores in scored for name, label in scores.items()} | COUNTS


def _agree(quantity: str, claimed: float, measured: float) -> bool:
    if quantity in COUNTS:
        return claimed == measured
    return abs(claimed - measured) <= TOLERANCE + _ROUNDING


def _shown(quantity: str, value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,}" if quantity in COUNTS else f"{value:.2f}"
