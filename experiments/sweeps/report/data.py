"""The points of a sweep as rows, the same over seeds, and both as tables."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from experiments.sweeps.folder import Sweep, read_result
from experiments.sweeps.identity import IN_LABEL, fingerprint
from norton.checkpoints.claims import QUANTITIES, decisive
from norton.cli import tables
from norton.cli.settings import has_budget, is_joint, rates_text, setting_text
from norton.common.errors import InputError
from norton.pruning import describe
from norton.pruning.rates import parse_rates

Row = dict[str, Any]
MEASURED = ("score", "score_before", "nmse", "macs", "params", "latency_ms", "macs_removed_percent")
MEASURED += ("params_removed_percent", "latency_percent", "speedup")
SEEDS = ("seed", "decomposition.seed", "pruning.seed")


def collect(sweep: Sweep, index: Mapping[str, Any]) -> tuple[list[Row], list[tuple[str, str]], list[Path]]:
    """The rows of the points that are done, (label, error) of those that failed, and the files that are damaged."""
    rows, failures, damaged = [], [], []
    for point, about in index["points"].items():
        try:
            record = read_result(sweep.result(point))
        except ValueError:
            damaged.append(sweep.result(point))
            continue
        if record is None:
            continue
        if record["status"] == "failed":
            failures.append((about["label"], record["error"]))
            continue
        rows.append(row(point, about, record))
    tell_apart_(rows)
    return rows, failures, damaged


def row(point: str, about: Mapping[str, Any], record: Mapping[str, Any]) -> Row:
    cfg, found = record["config"], record["result"]
    said = {}
    if "decompose" in cfg["steps"]:
        said["rank"] = cfg["rank"] if isinstance(cfg["rank"], int) else json.dumps(cfg["rank"])
    if "prune" in cfg["steps"]:
        said["rates"] = cfg["compress_rate"] if isinstance(cfg["compress_rate"], str) else str(cfg["compress_rate"])
        said["criterion"] = describe(cfg["pruning"])
    if has_budget(asked := OmegaConf.create(cfg)):
        said["rank"] = setting_text(asked)
        said |= {"rates": rates_text(asked)} if is_joint(asked) else {}
    # Whatever else was swept, by the name it was swept by; a group's choice says more than its settings.
    known = set(IN_LABEL) - {"rank_ratio"}
    said |= {key: value.strip("'\"") for key, value in about["swept"].items() if key not in known}
    settings = flattened(record["meaning"])
    for key in SEEDS:
        settings.pop(key, None)
    score = decisive(found)
    speedup = found["dense_latency_ms"] / found["latency_ms"] if "latency_ms" in found else None
    return {
        "point": point,
        "said": said,
        "settings": settings,
        "seed": cfg["seed"],
        "arch": found["arch"],
        "data": found["data"],
        "dense": found["dense"],
        **{key: found.get(key) for key in MEASURED},
        "score_name": score,
        "score": found[score],
        "score_before": found[f"{score}_before"],
        "speedup": speedup,
        # A ratio to what was timed in turns with it can be compared across machines and busy hours.
        "latency_percent": speedup and 100 / speedup,
        "latency_form": found.get("latency_form"),
        "trained": bool(cfg["training"]["epochs"]) and "finetune" in cfg["steps"],
        "seconds": record["seconds"],
        "machine": record["machine"],
        "command": about["command"],
        "config": OmegaConf.to_yaml(OmegaConf.create(cfg)),
    }


def flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings as dotted names."""
    flat = {}
    for key, value in settings.items():
        below = isinstance(value, Mapping) and key != "rank"  # ranks per layer are one setting
        flat |= flattened(value, f"{prefix}{key}.") if below else {f"{prefix}{key}": value}
    return flat


def mean_rate(rates: str) -> float:
    """By which rates are sorted: the mean of a list, one number itself; patterns come last."""
    try:
        return fmean(parse_rates(rates if "[" in rates else f"[{rates}]"))
    except InputError:
        return math.inf


def tell_apart_(rows: Sequence[Row]) -> None:
    """Give configurations that would be called the same, of an extended sweep, the settings in which they differ."""
    groups: dict[tuple, dict[str, dict]] = {}
    for one in rows:
        groups.setdefault(tuple(one["said"].items()), {})[fingerprint(one["settings"])] = one["settings"]
    differing = {
        key
        for same in groups.values()
        for key in {key for settings in same.values() for key in settings}
        if len({json.dumps(settings.get(key)) for settings in same.values()}) > 1
    }
    for one in rows:
        for key in sorted(differing):
            value = one["settings"].get(key)
            one["said"].setdefault(key, value if isinstance(value, int | float | str) else json.dumps(value))


def constants_(rows: Sequence[Row]) -> list[str]:
    """What all configurations have in common, in words; it leaves their descriptions, unless nothing would be left."""
    same = [key for key in rows[0]["said"] if len({json.dumps(row["said"].get(key)) for row in rows}) == 1]
    if len(same) == len(rows[0]["said"]):
        return []
    words = [name({key: rows[0]["said"][key]}) for key in same]
    for one in rows:
        one["said"] = {key: value for key, value in one["said"].items() if key not in same}
    return words


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """Means over seeds: a row per configuration, with the standard deviation of its accuracies as `spread`."""
    groups: dict[str, list[Row]] = {}
    for one in rows:
        groups.setdefault(fingerprint(one["settings"]), []).append(one)
    means = []
    for same in groups.values():
        values = {key: [one[key] for one in same if one[key] is not None] for key in MEASURED}
        mean = {key: fmean(found) if found else None for key, found in values.items()}
        mean["speedup"] = mean["latency_percent"] and 100 / mean["latency_percent"]  # not the mean of the ratios
        spread = stdev(values["score"]) if len(same) > 1 else 0.0
        shown = {"said": same[0]["said"], "name": name(same[0]["said"]), "seeds": len(same), "spread": spread}
        means.append({**mean, **shown, **{key: same[0][key] for key in ("trained", "score_name")}})
    return means


def uniform(rows: Sequence[Row]) -> list[Row]:
    """Rows with the keys of all of them, None where one has no such value."""
    keys = list(dict.fromkeys([*max(rows, key=len), *(key for row in rows for key in row)]))
    return [{key: row.get(key) for key in keys} for row in rows]


def dense_networks(rows: Sequence[Row]) -> list[Row]:
    """The networks that points come from: their score and costs."""
    denses = {json.dumps(row["dense"]): row["dense"] for row in rows}.values()
    return [
        {**dense, "score_name": decisive(dense), "score": dense[decisive(dense)], "latency_percent": 100}
        for dense in denses
    ]


def score_label(rows: Iterable[Row]) -> str:
    """What the score of rows is called in tables and pictures; a sweep may be over data of several tasks."""
    return " or ".join(dict.fromkeys(QUANTITIES[row["score_name"]] for row in rows))


def name(said: Mapping[str, Any]) -> str:
    return ", ".join(
        str(value) if key in ("rates", "criterion", "rank_ratio") else f"{key} {value}" for key, value in said.items()
    )


def cells(mean: Row) -> Row:
    """A configuration as a row of a table."""
    spread = f" ± {mean['spread']:.2f}" if mean["seeds"] > 1 else ""
    before = {"before fine-tuning": f"{mean['score_before']:.2f}"} if mean["trained"] else {}
    speed = {} if mean["speedup"] is None else {"times as fast": f"{mean['speedup']:.2f}"}
    return {
        **mean["said"],
        score_label([mean]): f"{mean['score']:.2f}{spread}",
        **before,
        "NMSE": None if mean["nmse"] is None else f"{mean['nmse']:.4f}",
        "MACs": tables.millions(mean["macs"]),
        "MACs −%": mean["macs_removed_percent"],
        "params −%": mean["params_removed_percent"],
        **speed,
        "seeds": mean["seeds"],
    }


def flat(one: Row) -> Row:
    """A point as a row of the CSV file."""
    numbers = {key.replace("score", one["score_name"]): one[key] for key in (*MEASURED, "latency_form", "seconds")}
    return {"point": one["point"], **one["said"], "seed": one["seed"], **numbers, "command": one["command"]}


def columns(one: Row) -> Row:
    """A point as a row of the page's table."""
    return {
        **one["said"],
        "seed": one["seed"],
        score_label([one]): _rounded(one["score"], 2),
        "before fine-tuning": _rounded(one["score_before"], 2),
        "NMSE": _rounded(one["nmse"], 4),
        "MACs (M)": _rounded(one["macs"] / 1e6, 2),
        "MACs −%": _rounded(one["macs_removed_percent"], 2),
        "params (M)": _rounded(one["params"] / 1e6, 3),
        "params −%": _rounded(one["params_removed_percent"], 2),
        "latency ms": _rounded(one["latency_ms"], 2),
        "times as fast": _rounded(one["speedup"], 2),
    }


def _rounded(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"
