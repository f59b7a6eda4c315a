"""Verify every checkpoint of a registry that is present, in one table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import norton
from norton.checkpoints import claims, verification
from norton.checkpoints.verification import CANNOT_BE_JUDGED, FAILS, HOLDS
from norton.cli import program, tables
from norton.cli.settings import check_settings
from norton.cli.verification import verify
from norton.common.files import write_json

WORDS = {HOLDS: "holds", FAILS: "does not hold", CANNOT_BE_JUDGED: "cannot be judged"}


@program.script("verify")
def main(cfg: DictConfig) -> int:
    check_settings(cfg)
    registry = Path(cfg.registry)
    entries = claims.read_registry(registry)
    folder = program.open_folder(cfg)
    results = {name: judged(claims.find_listed(registry.parent, name), entry, cfg) for name, entry in entries.items()}
    shown = shown_scores(entries.values())
    rows = [row(name, entries[name], result, shown) for name, result in results.items()]
    write_json(folder / "metrics.json", results)
    tables.write_table(folder / "table.md", rows)
    tables.print_table(rows, f"{registry}: claimed and measured (accuracy to {verification.TOLERANCE} points)")
    for name, result in results.items():
        if result and result["verdict_code"] != HOLDS:
            print(f"{name}: {result['verdict']}")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md")
    codes = {result["verdict_code"] for result in results.values() if result}
    return FAILS if FAILS in codes else CANNOT_BE_JUDGED if CANNOT_BE_JUDGED in codes or not codes else HOLDS


def judged(path: Path | None, entry: dict[str, Any], cfg: DictConfig) -> dict[str, Any] | None:
    """What was found of one checkpoint, None if it is absent; one that cannot be judged does not stop the others."""
    if path is None:
        return None
    cfg = cfg.copy()
    cfg.checkpoint = str(path)
    cfg.data.root = cfg.data.root or cfg.roots.get(entry.get("data"))
    try:
        claims.check_checksum(path, entry)
        return verify(cfg, entry).as_dict()
    except norton.InputError as error:
        return {"verdict": f"cannot be judged: {error}", "verdict_code": CANNOT_BE_JUDGED}


def shown_scores(entries: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The scores that have a column, and its title: those of each task of which an entry claims one."""
    claimed = {key for entry in entries for key, value in entry.items() if value is not None}
    tasks = [scores for scores in claims.SCORES.values() if claimed & scores.keys()]
    return {key: label for scores in tasks for key, label in scores.items()}


def row(name: str, entry: dict[str, Any], found: dict[str, Any] | None, scores: dict[str, str]) -> dict[str, Any]:
    """A row of the table, `claimed / measured` in each cell."""

    def both(quantity: str) -> str:
        values = entry.get(quantity), (found or {}).get(quantity)
        return " / ".join("-" if v is None else tables.format_cell(v) for v in values)

    return {
        "checkpoint": name,
        "data": entry.get("data"),
        **{label: both(key) for key, label in scores.items()},
        "MACs": both("macs"),
        "params": both("params"),
        "claim": "absent" if found is None else WORDS[found["verdict_code"]],
    }


if __name__ == "__main__":
    main()
