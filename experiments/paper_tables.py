"""The paper's tables, with this project's figures beside the published ones."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig
from rich.progress import track

import norton
from norton.cli import pictures, program
from norton.cli.tables import format_cell, print_table, write_table
from norton.common.files import write_json, write_whole
from norton.measure.counting import Complexity, percent_removed

PAPER = Path(__file__).parent / "paper"
NOT_TRAINED = ("decomposed", "pruned", "start")  # stages of a pipeline whose accuracy is not the network's best
Row = dict[str, Any]


class Run(NamedTuple):
    """An accuracy that some run measured; stage: its name in the run's metrics."""

    arch: str
    data: str
    macs: int
    params: int
    stage: str
    values: dict[str, Any]


def trained(run: Run) -> bool:
    """Whether an accuracy is that of a finished network."""
    finished = run.values.get("last_step") in (None, "train", "finetune")  # None: a published file has no lineage
    return finished and not run.stage.startswith(NOT_TRAINED) and "nmse" not in run.values


def untrained(run: Run) -> bool:
    """Whether an accuracy is that of a network just decomposed."""
    return run.stage == "decomposed" or run.values.get("last_step") == "decompose" or "nmse" in run.values


@program.script("paper_tables")
def main(cfg: DictConfig) -> None:
    if cfg.table != "all" and cfg.table not in TABLES:
        raise norton.InputError(f"unknown table {cfg.table!r}; choose one of all, {', '.join(TABLES)}")
    runs = find_runs(Path(cfg.runs))
    wanted = list(TABLES) if cfg.table == "all" else [cfg.table]
    tables = {name: TABLES[name](name, runs) for name in track(wanted, "count", transient=True)}
    folder = program.open_folder(cfg)
    write_json(folder / "metrics.json", tables)
    for name, rows in tables.items():
        write_table(folder / f"{name}.md", side_by_side(rows))
        write_whole(folder / f"{name}.csv", as_csv(rows))
        pictures.scatter_picture(folder / f"{name}.png", *picture(name, rows))
        print_table(side_by_side(rows), f"{name}: published / here")
    if any(row.get("experiment") == "unknown" for rows in tables.values() for row in rows):
        print("unknown: no configuration of that row is public, so only its printed figures can be shown")
    print(f"{len(runs)} accuracies found under {cfg.runs}/; a dash: none for that network on that data")
    print(f"written to {folder}/: config.yaml, metrics.json, and .md, .csv, .png of {', '.join(tables)}")


def experiment_of(row: Row) -> str | None:
    """The config in configs/experiment/ of a row of norton_rows.csv; None where its configuration is unknown."""
    if row["origin"] == "unknown":
        return None
    return f"{row['arch']}_baseline" if row["origin"] == "baseline" else f"{row['arch']}_{row['published_macs']}"


def classification(arch: str, runs: list[Run]) -> list[Row]:
    """A classification table: every published row, NORTON's with this project's counts."""
    known = {(row["arch"], row["published_macs"]): row for row in read("norton_rows.csv")}
    dense = count(arch, 0, None)
    rows = []
    for published in read("classification.csv"):
        if published["arch"] != arch:
            continue
        ours = "NORTON" in published["method"] or published["macs_reduced_percent"] == "00"
        row = known[arch, published["macs"]] if ours else None
        cost = count(arch, int(row["rank"]), row["compress_rate"]) if row and row["rank"] else None
        found = accuracy(runs, arch, published["dataset"], cost)
        rows.append(
            {
                "method": published["method"],
                "top-1 %": number(published["top1_percent"]),
                "top-1 % here": found.get("top1"),
                "top-5 %": number(published["top5_percent"]),
                "top-5 % here": found.get("top5"),
                **beside(published, cost, dense),
                "experiment": (experiment_of(row) or "unknown") if row else None,
            }
        )
    return rows


def beside(published: Row, cost: Complexity | None, dense: Complexity) -> Row:
    """Counts as published and as counted here."""
    cells = {}
    for what, reduced in (("macs", "macs_reduced_percent"), ("params", "params_reduced_percent")):
        title = {"macs": "MACs", "params": "params"}[what]
        # The published tables leave out the biases of decomposed layers.
        part, whole = (cost and getattr(cost, COUNTED[what])), getattr(dense, COUNTED[what])
        cells[title] = published[what] or None
        cells[f"{title} here"] = part and f"{part:,}"
        cells[f"{title} −%"] = number(published[reduced])
        cells[f"{title} −% here"] = part and percent_removed(part, whole)
    return cells


COUNTED = {"macs": "macs", "params": "params_printed"}


def rank_ablation(_: str, runs: list[Run]) -> list[Row]:
    """VGG-16-BN at ranks 1 to 8, not pruned."""
    dense = count("vgg_16_bn", 0, None)
    rows = []
    for published in read("rank_ablation.csv"):
        cost = count("vgg_16_bn", int(published["rank"]), None)
        before = accuracy(runs, "vgg_16_bn", "cifar10", cost, untrained)
        after = accuracy(runs, "vgg_16_bn", "cifar10", cost)
        rows.append(
            {
                "rank": int(published["rank"]),
                "MACs −%": number(published["macs_reduced_percent"]),
                "MACs −% here": percent_removed(cost.macs, dense.macs),
                "params −%": number(published["params_reduced_percent"]),
                "params −% here": percent_removed(cost.params, dense.params),
                "NMSE": published["nmse"],
                "NMSE here": before.get("nmse") and f"{before['nmse']:.4f}",
                "before fine-tuning %": number(published["top1_without_finetuning"]),
                "before fine-tuning % here": before.get("top1"),
                "top-1 %": number(published["top1_with_finetuning"]),
                "top-1 % here": after.get("top1"),
                "MACs here": f"{cost.macs:,}",
                "params here": f"{cost.params:,}",
                "experiment": f"ablation_rank_{published['rank']}",
            }
        )
    return rows


def rank_ratio(_: str, runs: list[Run]) -> list[Row]:
    """Four ways to spend the same MACs between rank and ratio."""
    dense = count("vgg_16_bn", 0, None)
    rows = []
    for published in read("rank_ratio_ablation.csv"):
        cost = count("vgg_16_bn", int(published["rank"]), published["compress_rate"])
        rows.append(
            {
                "method": published["name"],
                "rank": int(published["rank"]),
                "rates": published["compress_rate"],
                "top-1 %": number(published["top1_percent"]),
                "top-1 % here": accuracy(runs, "vgg_16_bn", "cifar10", cost).get("top1"),
                "MACs here": f"{cost.macs:,}",
                "MACs −% here": percent_removed(cost.macs, dense.macs),
                "params here": f"{cost.params:,}",
                "params −%": number(published["published_params_reduced_percent"]),
                "params −% here": percent_removed(cost.params, dense.params),
                "experiment": f"ablation_{published['name']}",
            }
        )
    return rows


def detection_table(_: str, runs: list[Run]) -> list[Row]:
    """Faster, Mask and Keypoint R-CNN on COCO; AP and AR of keypoints for the last."""
    import detection  # torchvision's detectors take over a second to import

    @cache
    def cost(kind: str, rank: int, rates: str | None) -> detection.DetectorComplexity:
        return detection.detector_complexity(detection.build_detector(kind, norton.build("resnet_50", rank, rates)))

    rows = []
    for published in read("detection.csv"):
        kind = published["model"].lower()
        configuration = DETECTION.get(published["macs_reduced_percent"])
        here, dense = configuration and cost(kind, *configuration), cost(kind, 0, None)
        rows.append(
            {
                "model": published["model"],
                "method": published["method"],
                "AP %": 100 * float(published["ap_or_ap_50_95"]),
                "AP % here": None,
                "AP50 %": 100 * float(published["ap_50"]),
                "AP75 %": 100 * float(published["ap_75"]),
                "MACs": published["macs"],
                "MACs here": here and f"{here.macs:,}",
                "MACs −%": number(published["macs_reduced_percent"]),
                "MACs −% here": here and percent_removed(here.macs, dense.macs),
                "params": published["params"],
                "params here": here and f"{here.params:,}",
                "params −%": number(published["params_reduced_percent"]),
                "params −% here": here and percent_removed(here.params, dense.params),
                "experiment": "unknown" if here is None else f"rank {configuration[0]}",
            }
        )
    return rows


# The configurations behind the rows of the detection table, by the MACs removed; the others are not public.
_SMALLEST = (1, "[0.]+[0.1]*2+[0.4]*5+[0.75]*12")
DETECTION = {"00": (0, None), "31": _SMALLEST, "30": _SMALLEST}

TABLES: dict[str, Callable[[str, list[Run]], list[Row]]] = {
    **dict.fromkeys(("vgg_16_bn", "resnet_56", "resnet_110", "densenet_40", "resnet_50"), classification),
    "rank_ablation": rank_ablation,
    "rank_ratio": rank_ratio,
    "detection": detection_table,
}


@cache
def count(arch: str, rank: int, compress_rate: str | None) -> Complexity:
    """The exact counts of a configuration."""
    return norton.complexity(norton.build(arch, rank, compress_rate))


def accuracy(
    runs: list[Run], arch: str, data: str, cost: Complexity | None, wanted: Callable[[Run], bool] = trained
) -> dict[str, Any]:
    """What the newest run of a network with these counts measured; by default of one that was trained to its end."""
    if cost is None:
        return {}
    same = [run for run in runs if run[:4] == (arch, data, cost.macs, cost.params) and wanted(run)]
    return same[-1].values if same else {}


def find_runs(folder: Path) -> list[Run]:
    """Every accuracy on a test split in the metrics of the runs below a folder, oldest first."""
    runs = []
    for path in sorted(folder.rglob("metrics.json"), key=lambda path: path.stat().st_mtime):
        try:
            runs += entries(json.loads(path.read_text()), "", {})
        except (OSError, ValueError, RecursionError):
            continue  # another program's file of that name
    return runs


def entries(content: Any, stage: str, shared: Row) -> Iterator[Run]:
    """The accuracies in a run's metrics, at whatever depth they stand; inner entries share what outer ones say."""
    if isinstance(content, list):
        for item in content:
            yield from entries(item, stage, shared)
    if not isinstance(content, dict):
        return
    values = {**shared, **{key: value for key, value in content.items() if not isinstance(value, dict | list)}}
    complete = {"macs", "params"} <= content.keys() and {"arch", "data"} <= values.keys()
    figures = [content[key] for key in ("top1", "top5", "nmse") if content.get(key) is not None]
    if not all(isinstance(figure, int | float) and math.isfinite(figure) for figure in figures):
        return
    if complete and values.get("split", "test") == "test":
        yield Run(values["arch"], values["data"], content["macs"], content["params"], stage, values)
        return
    for key, value in content.items():
        yield from entries(value, key, values)


def side_by_side(rows: list[Row]) -> list[Row]:
    """The same table for people: `published / here` in one cell, without columns that are empty."""
    filled = {key.removesuffix(" here") for row in rows for key, value in row.items() if value is not None}
    return [
        {
            key: cell(value, row[f"{key} here"], row["experiment"]) if f"{key} here" in row else value
            for key, value in row.items()
            if key.removesuffix(" here") in filled and not (key.endswith(" here") and key.removesuffix(" here") in row)
        }
        for row in rows
    ]


def cell(published: Any, here: Any, experiment: str | None) -> str:
    """Other methods have no figures here to wait for."""
    shown = format_cell(published)
    return f"{shown} / {format_cell(here)}" if experiment else shown


def picture(name: str, rows: list[Row]) -> tuple[dict[str, dict], str, str]:
    """Series → label → (MACs, params, accuracy), a title, and what accuracy is, for `scatter_picture`."""
    series: dict[str, dict] = {"other methods": {}, "dense, published": {}, "NORTON, published": {}, "this project": {}}
    accuracy = "AP %" if "AP %" in rows[0] else "top-1 %"
    for i, row in enumerate(rows):
        macs, params = (size(row.get(key) or row.get(f"{key} here")) for key in ("MACs", "params"))
        label = row.get("model") or row.get("method") or f"rank {row['rank']}"
        label = label.removesuffix(" (Ours)")
        series[kind(row)][f"{label}#{i}"] = (macs, params, row[accuracy])
        if row[f"{accuracy} here"] is not None:
            counts = (size(row["MACs here"]), size(row["params here"]))
            series["this project"][f"#{i}"] = (*counts, row[f"{accuracy} here"])
    return series, name, accuracy


def kind(row: Row) -> str:
    """The series that a row's published figures belong to."""
    if not row["experiment"]:
        return "other methods"
    return "dense, published" if row.get("MACs −%") == 0 else "NORTON, published"


def size(text: str | None) -> float | None:
    """`126.49M`, `4.09G` or `1,234` as a number."""
    if not text:
        return None
    text, factor = text.replace(",", ""), {"M": 1e6, "G": 1e9}
    return float(text[:-1]) * factor[text[-1]] if text[-1] in factor else float(text)


def number(text: str) -> float | None:
    return float(text) if text else None


def read(name: str) -> list[Row]:
    """The rows of one of the paper's files."""
    return list(csv.DictReader((PAPER / name).open()))


def as_csv(rows: list[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
