"""What a sweep found, also a half-finished one: a page that opens without a network, pictures, and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import norton
from experiments import paper_tables
from experiments.sweeps.folder import Sweep, read_index
from experiments.sweeps.report.charts import budget_slices, heat_maps, legend, panels
from experiments.sweeps.report.data import Row, cells, collect, constants_, flat, over_seeds, score_label, uniform
from experiments.sweeps.report.page import page
from experiments.sweeps.report.pictures import budget_picture, heat_picture, pareto_picture
from norton.cli import program, tables
from norton.cli.settings import plain
from norton.common.checks import is_number
from norton.common.files import write_whole


@program.script("report")
def main(cfg: DictConfig) -> None:
    check(cfg)
    sweep = Sweep(Path(str(cfg.sweep)))
    index = read_index(sweep)
    rows, failures, damaged = collect(sweep, index)
    folder = Path(str(cfg.out or sweep.folder))
    if not rows:
        raise norton.InputError(f"no point of {sweep.folder} has a result yet; {len(failures)} failed")
    missing = len(index["points"]) - len(rows) - len(failures)
    arch, data = (", ".join(dict.fromkeys(row[key] for row in rows)) for key in ("arch", "data"))
    title = ", ".join([f"{index['name']}: {arch} on {data}", *constants_(rows)])
    state = f"{len(rows)} of {len(index['points'])} points done"
    state += f", {len(failures)} failed" * bool(failures) + f", {missing} missing" * bool(missing)
    about = {"title": title, "state": state, "commands": index["commands"], "failures": failures}
    means = over_seeds(rows)
    files = write(folder, about, rows, means, budget_slices(means, plain(cfg.budgets), cfg.tolerance), cfg.tolerance)

    tables.print_table(uniform([cells(mean) for mean in means]), f"{title}, {state}")
    for path in damaged:
        print(f"{path} is no whole result; start the sweep again to repeat that point")
    for label, error in failures:
        print(f"failed: {label}: {error}")
    print(f"written to {folder}/: {', '.join(files)}")


def write(
    folder: Path,
    about: Mapping[str, Any],
    rows: Sequence[Row],
    means: Sequence[Row],
    slices: Mapping[float, Sequence[Row]],
    tolerance: float,
) -> list[str]:
    """Write tables, pictures and the page; returns the names of the files."""
    files = ["report.html", "points.csv", "table.md", "pareto.png"]
    fronts, words, maps = panels(means, rows), legend(means), heat_maps(means)
    write_whole(folder / "points.csv", paper_tables.as_csv(uniform([flat(row) for row in rows])))
    tables.write_table(folder / "table.md", uniform([cells(mean) for mean in means]))
    pareto_picture(folder / "pareto.png", fronts, words, f"{about['title']}, {about['state']}")
    if maps:
        heat_picture(folder / "heatmap.png", maps, about["title"], score_label(rows))
        files.append("heatmap.png")
    if slices:
        budget_picture(folder / "budgets.png", slices, tolerance, about["title"])
        files.append("budgets.png")
    write_whole(folder / "report.html", page(about, rows, means, fronts, words, maps, slices, tolerance))
    return files


def check(cfg: DictConfig) -> None:
    if cfg.sweep is None:
        raise norton.InputError("no sweep: give sweep=DIR, the folder that the sweep names at its end")
    budgets = plain(cfg.budgets)
    if budgets is not None and not (isinstance(budgets, list) and all(_number(b, -100, 100) for b in budgets)):
        raise norton.InputError(f"budgets is {budgets!r}; it must be a list of percentages of MACs removed, e.g. [65]")
    if not _number(cfg.tolerance, 0, 100):
        raise norton.InputError(f"tolerance is {cfg.tolerance!r}; it must be a number of percentage points, e.g. 1")


def _number(value: Any, low: float, high: float) -> bool:
    return is_number(value) and low <= value <= high


if __name__ == "__main__":
    main()
