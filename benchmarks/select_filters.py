"""Selecting 256 of 512 filters by pabs, beside the literal loop over the pairs, and the elimination on its own.

The loop computes each pair's distance as the formula reads: for each mode, orthonormal bases of both factor matrices
and the singular values of Q_iᵀQ_j (`pair`, the targets' baseline; about 10 s).  `once` is the same with the bases
computed beforehand and not timed.  Both run on a sample of the pairs in float64 numpy and are scaled to all of them;
the elimination that would follow is not added.  Ours is the whole of `keep_filters`: checks, bases, distances,
elimination.  All are measured in alternation and the best round of each counts, so that a passing load on the machine
spoils neither.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from norton.decomposition.factors import Factors
from norton.pruning import keep_filters
from norton.pruning.criteria.pabs import pabs
from norton.pruning.elimination import removal_order

TARGETS = {1: 1000, 4: 60, 8: 20}
ELIMINATION_MS = 20


def literal_distances(bases: list[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """The distance of each pair, one by one; bases: per mode (O, n, min(n, R))."""
    out = []
    for i, j in pairs:
        total = 0.0
        for basis in bases:
            cosines = np.linalg.svd(basis[i].T @ basis[j], compute_uv=False)
            total += np.arccos(np.clip(cosines, 0, 1)).max()
        out.append(total)
    return np.array(out)


def literal_distances_pair(matrices: list[np.ndarray], pairs: np.ndarray) -> np.ndarray:
    """As `literal_distances`, orthonormalising the two factor matrices of each pair and mode in the loop."""
    out = []
    for i, j in pairs:
        total = 0.0
        for mode in matrices:
            first, second = np.linalg.qr(mode[i])[0], np.linalg.qr(mode[j])[0]
            cosines = np.linalg.svd(first.T @ second, compute_uv=False)
            total += np.arccos(np.clip(cosines, 0, 1)).max()
        out.append(total)
    return np.array(out)


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure(rank: int, arguments: argparse.Namespace) -> dict:
    """One row of the table."""
    rng = np.random.default_rng(rank)
    filters, keep = arguments.filters, arguments.filters // 2
    arrays = [rng.standard_normal((n, rank, filters)) for n in (arguments.channels, 3, 3)]
    factors = Factors(*(torch.from_numpy(array).float() for array in arrays))
    matrices = [np.ascontiguousarray(factor.numpy().transpose(2, 0, 1), dtype=float) for factor in factors]
    bases = [np.linalg.qr(mode)[0] for mode in matrices]
    pairs = np.array(list(itertools.combinations(range(filters), 2)))
    sample = rng.choice(pairs, min(arguments.sample, len(pairs)), replace=False)

    distances = pabs(factors)
    error = np.abs(distances.numpy()[tuple(sample.T)] - literal_distances(bases, sample)).max()
    once, pair, ours, elimination = [], [], [], []
    for _ in range(arguments.rounds):
        once.append(seconds(literal_distances, bases, sample) / len(sample) * len(pairs))
        pair.append(seconds(literal_distances_pair, matrices, sample) / len(sample) * len(pairs))
        ours.extend(seconds(keep_filters, factors, keep) for _ in range(3))
        elimination.append(seconds(removal_order, distances, filters - keep))
    return {
        "rank": rank,
        "loop_once_s": min(once),
        "loop_pair_s": min(pair),
        "ours_ms": 1e3 * min(ours),
        "elimination_ms": 1e3 * min(elimination),
        "ratio_once": min(once) / min(ours),
        "ratio_pair": min(pair) / min(ours),
        "max_error_rad": float(error),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filters", type=int, default=512)
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--ranks", type=int, nargs="+", default=sorted(TARGETS))
    parser.add_argument("--sample", type=int, default=2000, help="pairs the literal loop runs on")
    parser.add_argument("--baseline", choices=("once", "pair"), default="pair", help="the loop the targets hold for")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; its own choice if not given")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    rows = [measure(rank, arguments) for rank in track(arguments.ranks, "measure", transient=True)]
    table = Table(title=f"keep {arguments.filters // 2} of {arguments.filters}, {torch.get_num_threads()} threads")
    columns = ["rank", "ours, ms", "elim., ms", "once, s", "ratio", "pair, s", "ratio", "target", "error", ""]
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        target = TARGETS.get(row["rank"], 0)
        row["pass"] = bool(
            row[f"ratio_{arguments.baseline}"] >= target
            and row["elimination_ms"] < ELIMINATION_MS
            and row["max_error_rad"] < 1e-5
        )
        table.add_row(
            str(row["rank"]),
            f"{row['ours_ms']:.1f}",
            f"{row['elimination_ms']:.2f}",
            f"{row['loop_once_s']:.2f}",
            f"{row['ratio_once']:.0f}x",
            f"{row['loop_pair_s']:.2f}",
            f"{row['ratio_pair']:.0f}x",
            f"{target}x",
            f"{row['max_error_rad']:.0e}",
            "PASS" if row["pass"] else "FAIL",
        )
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0 if all(row["pass"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
