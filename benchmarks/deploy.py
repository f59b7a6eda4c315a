"""Fewer MACs become less time: the paper's networks deployed, against the dense ones deployed in the same way.

    python benchmarks/deploy.py              # the issue's points: VGG-16-BN at ranks 1 to 8, ResNet-50, and others
    python benchmarks/deploy.py --rows paper # all rows of the paper
    python benchmarks/deploy.py --compile    # torch.compile on both sides

Random weights.  "dense, folded" is the dense network with BatchNorm folded, in the faster memory format: what
speed-ups are of.  "dense, deployed" is it deployed like the compressed one, which also packs its weights.  "eager" is
the compressed network as it is, in the fastest of the forms that all its layers can take alike.  The networks of a row
take turns; medians.  Exit code 1 if a network is slower than either of the two, beyond 3%, or misses what is aimed at.
"""

import argparse
import csv
import gc
import logging
import sys
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import norton
from norton.cli import pictures, tables
from norton.deployment.deploying import compiled
from norton.deployment.folding import fold
from norton.measure.latency import latencies
from norton.measure.machine import describe_machine

RATES_50 = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
POINTS = [  # network, rank, rates, times as fast that is aimed at
    ("vgg_16_bn", 1, None, 5.0),
    ("vgg_16_bn", 2, None, 1.3),
    *(("vgg_16_bn", rank, None, 1.0) for rank in range(3, 9)),
    ("vgg_16_bn", 8, "[0.21]*7+[0.75]*5", 1.6),
    ("resnet_50", 1, RATES_50, 2.5),
    ("resnet_56", 7, "[0.]+[0.18]*29", 1.0),
    ("resnet_56", 2, None, 1.0),
    ("resnet_56", 1, "[0.]+[0.18]*29", 1.0),
    ("densenet_40", 8, "[0.]+[0.2]*12+[0.]+[0.2]*12+[0.]+[0.2]*12", 1.0),
    ("densenet_40", 4, "[0.]+[0.1]*12+[0.]+[0.1]*12+[0.]+[0.1]*12", 1.0),
]
PAPER = Path(__file__).parent.parent / "experiments/paper/norton_rows.csv"
TIMED = ("dense, folded", "dense, deployed", "eager", "deployed")
CHANNELS_LAST = {"memory_format": torch.channels_last}
NOISE = 0.97


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", choices=["points", "paper"], default="points")
    parser.add_argument("--archs", nargs="+", help="only these networks")
    parser.add_argument("--ranks", type=int, nargs="+", help="only these ranks")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--picture", type=Path, help="write speed-ups against the ratio of MACs here")
    args = parser.parse_args()
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    device = torch.device(args.device)
    print(f"{describe_machine(device)}, batch {args.batch}, {args.dtype}, torch {torch.__version__}")
    rows, slow = [], 0
    for arch, rank, rates, aim in points(args):
        row, ratio, like = measure(arch, rank, rates, args, device)
        verdict = "" if aim is None else "met" if ratio >= (aim if aim != 1 else NOISE) else "MISSED"
        slow += verdict == "MISSED" or min(ratio, like) < NOISE
        rows.append(row | {"aim": "" if aim is None else f"{aim:g}", "verdict": verdict})
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    tables.print_table(rows, f"batch {args.batch}, {args.dtype}" + ", compiled" * args.compile)
    if args.table:
        tables.write_table(args.table, rows)
    if args.picture:
        draw(rows, args.picture)
    return int(slow > 0)


def points(args) -> list[tuple]:
    found = POINTS
    if args.rows == "paper":
        with PAPER.open() as file:
            rows = [row for row in csv.DictReader(file) if row["rank"].strip("0")]
        found = [(row["arch"], int(row["rank"]), row["compress_rate"], None) for row in rows]
    kept = [one for one in found if args.archs is None or one[0] in args.archs]
    return [one for one in kept if args.ranks is None or one[1] in args.ranks]


def measure(arch: str, rank: int, rates: str | None, args, device: torch.device) -> tuple[dict, float, float]:
    """A row of the table, and how many times as fast the deployed network is as the dense one folded, and deployed."""
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    dense, small = (norton.build(arch, *what).eval().to(device, dtype) for what in ((), (rank, rates)))
    costs = [norton.complexity(net).macs for net in (dense, small)]
    x = torch.randn(args.batch, *dense.input_size, device=device, dtype=dtype)
    dense_deployed = norton.deploy(dense, x)
    start = time.perf_counter()
    deployed = norton.deploy(small, x)
    seconds = time.perf_counter() - start
    nets: dict[str, nn.Module] = {"eager": small, "deployed": deployed, "dense, deployed": dense_deployed}
    nets |= {"contiguous": fold(dense, x).net, "channels-last": fold(dense, x).net.to(**CHANNELS_LAST)}
    if args.compile:
        nets |= {
            name: compiled(nets[name], x) for name in ("contiguous", "channels-last", "dense, deployed", "deployed")
        }
    times = {name: time.milliseconds for name, time in latencies(nets, x, repeats=args.repeats).items()}
    times["dense, folded"] = min(times.pop("contiguous"), times.pop("channels-last"))
    ratio, like = (times[baseline] / times["deployed"] for baseline in ("dense, folded", "dense, deployed"))
    counts = deployed.deployment.counts()
    row = {
        "network": arch,
        "rank": rank,
        "rates": rates or "-",
        "times fewer MACs": f"{costs[0] / costs[1]:.2f}",
        **{f"{name}, ms": f"{times[name]:.1f}" for name in TIMED},
        "eager, times as fast": f"{times['dense, folded'] / times['eager']:.2f}",
        "deployed, times as fast": f"{ratio:.2f}",
        "as dense deployed": f"{like:.2f}",
        "forms": ", ".join(f"{count} {form}" for form, count in counts.items()),
        "tuned in s": f"{seconds:.0f}",
    }
    gc.collect()
    return row, ratio, like


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator

    figure, axis = plt.subplots(figsize=(7, 5))
    most = max(float(row["times fewer MACs"]) for row in rows)
    axis.plot([1, most], [1, most], color="#bbbbbb", linewidth=1, label="as many times as fewer MACs")
    axis.axhline(1, color="#bbbbbb", linewidth=1, linestyle="--")
    colours = dict(zip(dict.fromkeys(row["network"] for row in rows), pictures.COLOURS, strict=False))
    for network, colour in colours.items():
        own = [row for row in rows if row["network"] == network]
        for key, marker, face in (("eager", "o", "none"), ("deployed", "o", colour)):
            x, y = ([float(row[name]) for row in own] for name in ("times fewer MACs", f"{key}, times as fast"))
            axis.scatter(x, y, marker=marker, facecolors=face, edgecolors=colour, label=f"{network}, {key}")
    axis.set(xscale="log", yscale="log", xlabel="times fewer MACs", ylabel="times as fast as the dense network, folded")
    for each in (axis.xaxis, axis.yaxis):
        each.set_major_locator(LogLocator(subs=(1, 2, 5)))
        each.set_major_formatter("{x:g}")
        each.set_minor_formatter("")
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    pictures.save_figure(path, figure, "Speed-up against MACs: eager and deployed")


if __name__ == "__main__":
    sys.exit(main())
