"""Decompose VGG-16 at every rank: norton.decomposition.cp_filters beside a loop of tensorly.parafac over the filters.

The loop is what one would write without this library: `parafac(filter, rank, n_iter_max=300, init="random")`, with
tensorly's NumPy backend, its faster one. It is timed on some filters of each layer and its time multiplied by
(filters of the layer / filters timed); ours is timed on all filters. Both errors are those of the filters that the loop
did. Loop and ours alternate layer by layer, so that a busy machine slows down both.

Weights are seeded stand-ins for trained ones: `random` as at initialisation, `structured` four rank-one terms plus
noise.

    python benchmarks/decompose_vgg.py --ranks 1 2 3 --sample 8 --json figures.json
"""

import argparse
import json
import resource
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tensorly.decomposition import parafac
from torch import Tensor

from norton.decomposition import cp_filters
from norton.decomposition.factors import Factors, reconstruct

CHANNELS = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
# starts → (least speed ratio to the loop, greatest error ratio to the loop's)
TARGETS = {1: (100, 1.005), 3: (25, 1.0)}
MEMORY_TARGET_GB = 2


def layer_weights(kind: str, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = []
    for fan, out in pairwise(CHANNELS):
        weight = torch.randn(out, fan, 3, 3, generator=generator)
        if kind == "structured":
            head = torch.randn(fan, 4, out, generator=generator)
            body, tail = (torch.randn(3, 4, out, generator=generator) + 1 for _ in range(2))
            weight = reconstruct(Factors(head, body, tail)) + 0.5 * weight
        weights.append(weight * (2 / (9 * fan)) ** 0.5)
    return weights


def loop(filters: np.ndarray, rank: int) -> Tensor:
    """tensorly's decomposition of each filter, multiplied out: (n, C, 3, 3)."""
    dense = []
    for index, one in enumerate(filters):
        weights, factors = parafac(one, rank, n_iter_max=300, init="random", random_state=index)
        dense.append(np.einsum("r,cr,ir,jr->cij", weights, *factors))
    return torch.from_numpy(np.stack(dense))


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return time.perf_counter() - start, result


def nmse(weight: Tensor, approximation: Tensor) -> float:
    weight, approximation = weight.double().flatten(1), approximation.double().flatten(1)
    return ((weight - approximation).square().sum(1) / weight.square().sum(1)).mean().item()


def measure(weights: list[Tensor], rank: int, sample: int, advance) -> dict:
    """Seconds for the whole network and mean error, of the loop and of ours with each number of starts."""
    seconds, errors = {}, {}
    for weight in weights:
        # Spread over the layer; any choice is fair, the filters are drawn alike.
        chosen = torch.linspace(0, len(weight) - 1, min(sample, len(weight))).long()
        time_taken, dense = timed(loop, weight[chosen].numpy(), rank)
        seconds.setdefault("loop", []).append(time_taken * len(weight) / len(chosen))
        errors.setdefault("loop", []).append(nmse(weight[chosen], dense))
        for starts in TARGETS:
            time_taken, factors = timed(cp_filters, weight, rank, starts=starts)
            part = Factors(*(factor[..., chosen] for factor in factors))
            seconds.setdefault(starts, []).append(time_taken)
            errors.setdefault(starts, []).append(nmse(weight[chosen], reconstruct(part)))
        advance()
    row = {"rank": rank, "loop_seconds": sum(seconds["loop"]), "loop_nmse": fmean(errors["loop"])}
    for starts in TARGETS:
        row[f"seconds_{starts}"] = sum(seconds[starts])
        row[f"nmse_{starts}"] = fmean(errors[starts])
        row[f"speed_ratio_{starts}"] = row["loop_seconds"] / row[f"seconds_{starts}"]
        row[f"nmse_ratio_{starts}"] = row[f"nmse_{starts}"] / row["loop_nmse"]
    return row


def resident_gb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**30


def peak_resident_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def print_table(rows: list[dict]) -> None:
    table = Table("rank", "loop s", "NMSE", title="VGG-16, 13 layers, 4224 filters")
    for starts in TARGETS:
        for heading in (f"starts={starts} s", "loop / ours", "NMSE", "NMSE / loop's"):
            table.add_column(heading, justify="right")
    for row in rows:
        cells = [str(row["rank"]), f"{row['loop_seconds']:.0f}", f"{row['loop_nmse']:.4f}"]
        for starts in TARGETS:
            cells += [f"{row[f'seconds_{starts}']:.2f}", f"{row[f'speed_ratio_{starts}']:.0f}"]
            cells += [f"{row[f'nmse_{starts}']:.4f}", f"{row[f'nmse_ratio_{starts}']:.4f}"]
        table.add_row(*cells)
    Console(width=max(120, Console().width)).print(table)


def verdicts(rows: list[dict], memory_gb: float) -> dict[str, bool]:
    """Target, in words with the measured extreme → whether it is met."""
    found = {}
    for starts, (speed, error) in TARGETS.items():
        slowest = min(row[f"speed_ratio_{starts}"] for row in rows)
        worst = max(row[f"nmse_ratio_{starts}"] for row in rows)
        found[f"starts={starts}: at least {speed}x the loop's speed at every rank ({slowest:.0f}x)"] = slowest >= speed
        # Equal is no improvement, so the target of 1 is strict.
        met = worst < error if error == 1 else worst <= error
        found[f"starts={starts}: NMSE / loop's {'<' if error == 1 else '<='} {error} ({worst:.4f})"] = met
    found[f"extra memory below {MEMORY_TARGET_GB} GB ({memory_gb:.2f} GB)"] = memory_gb < MEMORY_TARGET_GB
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=range(1, 9), choices=range(1, 9))
    parser.add_argument("--sample", type=int, default=8, help="filters of each layer that the loop decomposes")
    parser.add_argument("--weights", choices=("random", "structured"), default="random")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--threads", type=int, help="torch's threads; 1 on a machine that others use too")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    weights = layer_weights(args.weights, args.seed)
    for function in (lambda: loop(weights[1][:1].numpy(), 2), lambda: cp_filters(weights[1], 2)):
        function()  # first calls load libraries
    before = resident_gb()
    rows = []
    with warnings.catch_warnings(), Progress() as progress:
        warnings.simplefilter("ignore")  # tensorly's, about its own arguments
        task = progress.add_task("decompose", total=len(args.ranks) * len(weights))
        for rank in args.ranks:
            rows.append(measure(weights, rank, args.sample, lambda: progress.advance(task)))
    memory_gb = peak_resident_gb() - before  # of loop and ours together
    print_table(rows)
    found = verdicts(rows, memory_gb)
    for target, met in found.items():
        print("PASS" if met else "FAIL", target)
    if args.json:
        options = {"sample": args.sample, "weights": args.weights, "seed": args.seed}
        options["threads"] = torch.get_num_threads()
        args.json.write_text(json.dumps({**options, "rows": rows, "memory_gb": memory_gb, "targets": found}, indent=2))
    return 0 if all(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
