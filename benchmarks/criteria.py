"""Which criteria beat random: all at three budgets and three seeds, before and after the same short fine-tuning.

    python -m experiments.ablation experiment=sweep_criteria hydra/launcher=joblib hydra.launcher.n_jobs=2
    python benchmarks/criteria.py

The first command measures (126 points of ResNet-56 on `clutter`, resumable), the second one shows what was found: a
table per budget of top-1 accuracy, mean ± standard deviation over the seeds, and how far each criterion is above
`random` at that budget: the mean of the differences, and how many standard errors it is away from zero.  Criteria that
decide for themselves how much goes where remove other MACs at the same rate: compare those by MACs.

Written beside the sweep: criteria_RATE.md and criteria.png.  The exit code is 1 if points are missing.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from norton.cli.tables import print_table, write_table

Key = tuple[float, str]  # rate and criterion


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=Path, default=Path("outputs/sweeps/criteria"), help="the folder of the sweep")
    args = parser.parse_args()
    points, missing = read(args.sweep)
    if not points:
        print(f"error: no finished point in {args.sweep}; run the first command above", file=sys.stderr)
        return 2
    tables = {rate: rows(points, rate) for rate in sorted({rate for rate, _ in points})}
    for rate, table in tables.items():
        print_table(table, f"rates {rate:g}")
        write_table(args.sweep / f"criteria_{rate:g}.md", table)
    picture(args.sweep / "criteria.png", points)
    print(f"written to {args.sweep}/: criteria_RATE.md, criteria.png")
    if missing:
        print(f"{missing} points are missing; the same sweep command measures them")
    return int(missing > 0)


def read(sweep: Path) -> tuple[dict[Key, dict[int, dict]], int]:
    """(rate, criterion) → seed → result of the finished points; and how many are not."""
    found: dict[Key, dict[int, dict]] = defaultdict(dict)
    files = sorted((sweep / "points").glob("*.json"))
    for file in files:
        record = json.loads(file.read_text())
        if record["status"] == "done":
            said = dict(override.split("=", 1) for override in record["overrides"])
            found[float(said["compress_rate"]), said["pruning"]][int(said["seed"])] = record["result"]
    planned = len(json.loads((sweep / "sweep.json").read_text())["points"]) if files else 0
    return dict(found), planned - sum(map(len, found.values()))


def rows(points: dict[Key, dict[int, dict]], rate: float) -> list[dict]:
    """A row per criterion at a budget, the best after fine-tuning first."""
    here = {criterion: by_seed for (at, criterion), by_seed in points.items() if at == rate}
    random = here.get("random", {})
    order = sorted(here, key=lambda criterion: -mean(here[criterion], "top1"))
    return [
        {
            "criterion": criterion,
            "MACs removed %": f"{mean(here[criterion], 'macs_removed_percent'):.1f}",
            "before %": cell(here[criterion], "top1_before"),
            "above random, before": above(here[criterion], random, "top1_before"),
            "after %": cell(here[criterion], "top1"),
            "above random, after": above(here[criterion], random, "top1"),
        }
        for criterion in order
    ]


def mean(by_seed: dict[int, dict], key: str) -> float:
    return fmean(result[key] for result in by_seed.values())


def spread(by_seed: dict[int, dict], key: str) -> float:
    return stdev([result[key] for result in by_seed.values()]) if len(by_seed) > 1 else 0.0


def cell(by_seed: dict[int, dict], key: str) -> str:
    return f"{mean(by_seed, key):.1f} ± {spread(by_seed, key):.1f}"


def above(by_seed: dict[int, dict], random: dict[int, dict], key: str) -> str:
    """The difference of the means, and how many of its standard errors it is away from zero."""
    if by_seed is random or not random:
        return ""
    difference = mean(by_seed, key) - mean(random, key)
    error = math.hypot(*(spread(one, key) / math.sqrt(len(one)) for one in (by_seed, random)))
    return f"{difference:+.1f}" + (f" ({abs(difference) / error:.1f} se)" if error else "")


def picture(path: Path, points: dict[Key, dict[int, dict]]) -> None:
    """A panel per budget: each criterion's accuracies, every seed a dot, before and after fine-tuning."""
    rates = sorted({rate for rate, _ in points})
    names = {criterion for _, criterion in points}
    order = sorted(names, key=lambda name: fmean(mean(by, "top1") for (_, own), by in points.items() if own == name))
    figure, axes = plt.subplots(1, len(rates), figsize=(4 * len(rates), 0.32 * len(names) + 1.6), sharey=True)
    for axis, rate in zip([axes] if len(rates) == 1 else axes, rates, strict=True):
        for key, colour, label in (("top1_before", "tab:orange", "before"), ("top1", "tab:blue", "after fine-tuning")):
            for height, name in enumerate(order):
                by_seed = points.get((rate, name), {})
                axis.plot([r[key] for r in by_seed.values()], [height] * len(by_seed), "o", color=colour, alpha=0.5)
            if (rate, "random") in points:
                axis.axvline(mean(points[rate, "random"], key), color=colour, linestyle=":", linewidth=1)
            axis.plot([], [], "o", color=colour, label=label)
        axis.set(title=f"rates {rate:g}", xlabel="test top-1 (%)", yticks=range(len(order)), yticklabels=order)
        axis.grid(axis="x", alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="lower right", ncols=2, fontsize=8, frameon=False)
    result = next(iter(next(iter(points.values())).values()))
    figure.suptitle(f"{result['arch']} on {result['data']}, a dot per seed; dotted: the mean of random")
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
