"""A sweep without training against as many separate pipelines, and in two processes against one.

The sweep: ResNet-56 on `clutter`, ranks 1 to 4, two criteria, eight rates, which is 64 points.  The baseline is
`experiments.pipeline` with `training=none`, a process for each point; `--pipelines N` of them are timed, spread over
the grid, and their mean stands for all 64 (N=64 runs every one).  Overhead is the wall time of the sweep in one process
that is neither compression nor measurement.  Exit code 1 if reuse is worth less than 5 times, or a point has a second
of overhead.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

RANKS, CRITERIA = [1, 2, 3, 4], ["pabs", "l2"]
RATES = [f"[0.]+[{rate}]*29" for rate in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)]
COMPUTING = ("decompose", "prune", "accuracy", "count", "latency")
START = "checkpoint=checkpoints/resnet_56_clutter.pt"


def timed(*words):
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def sweep(folder, *more):
    grid = [f"rank={','.join(map(str, RANKS))}", f"pruning={','.join(CRITERIA)}", f"compress_rate={','.join(RATES)}"]
    return timed("experiments.ablation", START, *grid, f"out={folder}", *more)


def computing(point):
    """Seconds that a point spent on what it is for, the making of what points share included."""
    stages = json.loads(point.read_text())["seconds_by_stage"]
    return sum(stages.get(stage, 0) for stage in COMPUTING)


def pipeline(folder, rank, criterion, rates):
    settings = [f"rank={rank}", f"pruning={criterion}", f"compress_rate={rates}", "steps=[decompose,prune]"]
    return timed("experiments.pipeline", START, *settings, "logger=none", f"out={folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", type=int, default=4, help="how many separate pipelines are timed")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    grid = list(itertools.product(RANKS, CRITERIA, RATES))
    if not 1 <= args.pipelines <= len(grid):
        parser.error(f"--pipelines is {args.pipelines}; it must be 1 to {len(grid)}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        one = sweep(folder / "one")
        points = [computing(path) for path in (folder / "one" / "points").glob("*.json")]
        again = sweep(folder / "one")
        two = sweep(folder / "two", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
        step = len(grid) / args.pipelines
        chosen = [grid[int((number + 0.5) * step)] for number in range(args.pipelines)]
        separate = [pipeline(folder / f"p{n}", *point) for n, point in enumerate(track(chosen, "pipelines"))]
    assert len(points) == len(grid)
    whole = len(grid) * sum(separate) / len(separate)
    numbers = {
        "separate pipelines, s": whole,
        "one sweep, s": one,
        "times as fast": whole / one,
        "two processes, s": two,
        "times as fast as one": one / two,
        "overhead per point, s": (one - sum(points)) / len(grid),
        "the finished sweep again, s": again,
    }
    title = f"{len(grid)} points of ResNet-56 on clutter; {args.pipelines} pipelines timed"
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    table.add_column("measured", justify="right")
    for name, value in numbers.items():
        table.add_row(name, f"{value:.2f}")
    Console().print(table)
    if args.json:
        args.json.write_text(json.dumps(numbers, indent=2))
    return int(numbers["times as fast"] < 5 or numbers["overhead per point, s"] >= 1)


if __name__ == "__main__":
    sys.exit(main())
