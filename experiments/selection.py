"""What the selection of the paper's public code costs: the same networks pruned both ways, then fine-tuned alike."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig
from torch import nn

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.chain import check_teachers
from norton.cli.data_checks import check_classes, check_pictures
from norton.cli.settings import check_settings, plain, require
from norton.common.checks import is_whole_number
from norton.common.files import write_json
from norton.measure.counting import percent_removed
from norton.pruning import SELECTIONS, describe, has_distance
from norton.pruning.rates import parse_rates

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


class Point(NamedTuple):
    """One network of the comparison."""

    budget: int  # number of the rates in `budgets`
    selection: str
    seed: int

    @property
    def name(self) -> str:
        return f"budget{self.budget}_{self.selection}_seed{self.seed}"


@program.script("selection", resumes=True)
def main(cfg: DictConfig) -> None:
    check(cfg)
    dense, origin = opening.open_network(cfg)
    opening.choose_data(cfg, dense, opening.named_by(dense, origin) or opening.DIGITS)
    data = opening.open_data(cfg, dense)
    check_classes(dense, data)
    check_teachers(dense, origin["lineage"], cfg, ["decompose", "prune", "finetune"], data)
    steps.check_fit(dense, cfg, "decompose")
    for rates in cfg.budgets:
        steps.check_fit(dense, at_rates(cfg, rates), "prune")
    check_pictures(data, ("train", "val", "test"))
    folder = program.open_folder(cfg)
    points = list(all_points(cfg))
    for number, point in enumerate(points, start=1):
        path = folder / "points" / f"{point.name}.json"
        if not path.exists():
            print(f"{number} of {len(points)}: rates {cfg.budgets[point.budget]}, {point.selection}, seed {point.seed}")
            write_json(path, measure(dense, point, cfg, data, folder))
    results = {point: json.loads((folder / "points" / f"{point.name}.json").read_text()) for point in points}
    score, label = opening.score_of(data)
    rows = [row(results, budget, cfg, score) for budget in range(len(cfg.budgets))]
    write_json(folder / "metrics.json", rows)
    tables.write_table(folder / "table.md", rows)
    title = f"{dense.arch} on {data.name}, rank {cfg.rank}, {describe(cfg.pruning)}: {label}, mean ± spread of seeds"
    pictures.series_picture(
        folder / "picture.png", panels(results, cfg, score), title, x="MACs removed %", y=f"test {label}"
    )
    tables.print_table(rows, title)
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png, points/")


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that a long run would stumble over later."""
    check_settings(cfg)
    require(cfg, "decompose")
    for name in ("budgets", "selections", "seeds"):
        values = plain(cfg[name])
        if not isinstance(values, list) or not values or len(set(map(str, values))) < len(values):
            raise norton.InputError(f"{name} is {values!r}; give a list of at least one, none of them twice")
    for rates in cfg.budgets:
        parse_rates(plain(rates))
    for selection in cfg.selections:
        if selection not in SELECTIONS:
            raise norton.InputError(f"unknown selection {selection!r}; choose among {', '.join(SELECTIONS)}")
    if len(cfg.selections) > 1 and not has_distance(plain(cfg.pruning.criterion)):
        raise norton.InputError(
            f"pruning={describe(cfg.pruning)} scores filters one by one, so all selections are the same; give a "
            "distance, or selections=[exact]"
        )
    for seed in cfg.seeds:
        if not is_whole_number(seed, 0):
            raise norton.InputError(f"seeds has {seed!r}; seeds are whole numbers of at least 0")


def at_rates(cfg: DictConfig, rates: Any) -> DictConfig:
    cfg = cfg.copy()
    cfg.compress_rate = rates
    return cfg


def all_points(cfg: DictConfig) -> Iterator[Point]:
    """Every point; those of one seed follow each other, for they share a decomposed network."""
    for seed in cfg.seeds:
        for budget in range(len(cfg.budgets)):
            for selection in cfg.selections:
                yield Point(budget, selection, seed)


def measure(
    dense: nn.Module, point: Point, cfg: DictConfig, data: "ClassificationData", folder: Path
) -> dict[str, float]:
    """Accuracy before and after fine-tuning, and what was removed."""
    cfg = cfg.copy()
    cfg.seed = cfg.decomposition.seed = point.seed
    cfg.compress_rate, cfg.pruning.selection = cfg.budgets[point.budget], point.selection
    data.splits  # noqa: B018  made by data.seed: all points see the same pictures, in an order of their own
    data.seed = point.seed
    pruned = steps.prune(decomposed(dense, cfg, data, folder), cfg, data)
    steps.calibrate_(pruned, dense, cfg, data)
    tuned = steps.fit(pruned, cfg, "training", data, folder / "training" / point.name, dense=dense)
    cost, whole = norton.complexity(tuned), norton.complexity(dense)
    score, _ = opening.score_of(data)
    return {
        f"{score}_before": steps.evaluate(pruned, cfg, data)[score],
        score: steps.evaluate(tuned, cfg, data)[score],
        "macs_removed_percent": percent_removed(cost.macs, whole.macs),
    }


def decomposed(dense: nn.Module, cfg: DictConfig, data: "ClassificationData", folder: Path) -> nn.Module:
    """The network of a seed, decomposed once and kept."""
    path = folder / f"decomposed_seed{cfg.seed}.pt"
    if not path.exists():
        norton.save(steps.decompose(dense, cfg, data), path)
    return opening.load_file(path, cfg)


def row(results: dict[Point, dict], budget: int, cfg: DictConfig, score: str) -> dict:
    """A budget's row: each selection before and after fine-tuning, and what the last one loses against the first."""

    def of(selection: str, key: str) -> list[float]:
        return [results[Point(budget, selection, seed)][key] for seed in cfg.seeds]

    cells = {"rates": cfg.budgets[budget], "MACs removed %": of(cfg.selections[0], "macs_removed_percent")[0]}
    for selection in cfg.selections:
        cells[f"{selection}, before"] = spread(of(selection, f"{score}_before"))
        cells[f"{selection}, fine-tuned"] = spread(of(selection, score))
    first, last = cfg.selections[0], cfg.selections[-1]
    if first == last:
        return cells
    for label, key in (("before", f"{score}_before"), ("fine-tuned", score)):
        lost = [a - b for a, b in zip(of(first, key), of(last, key), strict=True)]
        cells[f"{first} − {last}, {label}"] = spread(lost)
    return cells


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def panels(results: dict[Point, dict], cfg: DictConfig, score: str) -> dict:
    """Panel → selection → (x, mean, standard deviation) per budget."""
    drawn = {"before fine-tuning": f"{score}_before", "after fine-tuning": score}
    found: dict[str, dict[str, list]] = {}
    for title, key in drawn.items():
        found[title] = {}
        for selection in cfg.selections:
            lines = []
            for budget in range(len(cfg.budgets)):
                points = [results[Point(budget, selection, seed)] for seed in cfg.seeds]
                values = [point[key] for point in points]
                lines.append(
                    (points[0]["macs_removed_percent"], mean(values), stdev(values) if len(values) > 1 else 0.0)
                )
            found[title][selection] = lines
    return found


if __name__ == "__main__":
    main()
