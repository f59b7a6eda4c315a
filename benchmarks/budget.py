"""A budget of MACs spent in four ways, without training: uniform ranks, chosen ranks, pruning, both jointly.

    python -m experiments.ablation experiment=sweep_outputs # makes the dense network
    python benchmarks/budget.py --checkpoint outputs/sweeps/shared/dense_*.pt

A half-width VGG-16-BN on `clutter`; any other checkpoint that says its data, or --data.  Layers are decomposed for
outputs, pruned ones compensated, from the same unlabelled images.  "error" is what the choices make least, the sum of
layers' relative output errors; top-1 accuracy is on the test split; seconds are of choosing, with all measurements.
"""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dense_network import accuracy, arguments, opened
from torch import Tensor, nn

import norton
from norton import Calibration
from norton.budget.layer_errors import probe_layers
from norton.budget.pruning_curves import pruning_curves_of
from norton.cli.tables import print_table
from norton.pruning import Pruning

WAYS = ("uniform ranks", "chosen ranks", "pruning", "joint")
OUTPUTS = norton.DecomposeOptions(objective="outputs")
PRUNING = Pruning("l2", norton.PruneOptions(compensate="outputs"))
FILTERS = 64  # of a layer that are looked at, as by `norton.choose_ranks`


@dataclass
class Spent:
    """Ranks and rates, and what their choice says: the layers' errors added up, and how long it took."""

    ranks: Mapping
    rates: Mapping
    error: float
    seconds: float


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5, 0.3], help="shares to keep")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    args = parser.parse_args()
    net, data, images = opened(args)
    rows = []
    for share in args.macs:
        for way, spent in ways(net, images, share, args.ways):
            small = compressed(net, images, spent)
            kept = norton.complexity(small).macs / norton.complexity(net).macs
            row = {"MACs asked %": f"{100 * share:g}", "way": way, "kept %": f"{100 * kept:.2f}"}
            row |= {"error": f"{spent.error:.3f}", "top-1 %": f"{accuracy(small, data):.2f}"}
            rows.append(row | {"seconds": f"{spent.seconds:.0f}"})
            print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print_table(rows, f"{type(net).__name__} on {data.name}, no training")
    return 0


def ways(net: nn.Module, images: Tensor, share: float, wanted: list[str]):
    """What each way buys; uniform ranks only where one is within the budget."""
    if {"uniform ranks", "chosen ranks"} & set(wanted):
        seconds, choice = timed(lambda: norton.choose_ranks(net, images, macs=share, decomposition=OUTPUTS))
        if "uniform ranks" in wanted and choice.uniform is not None:
            yield "uniform ranks", Spent(dict.fromkeys(choice.ranks, choice.uniform.rank), {}, choice.uniform.error, 0)
        if "chosen ranks" in wanted:
            yield "chosen ranks", Spent(choice.ranks, {}, choice.error, seconds)
    if "pruning" in wanted:
        yield "pruning", pruned_alone(net, images, share)
    if "joint" in wanted:
        how = {"decomposition": OUTPUTS, "pruning": PRUNING}
        seconds, choice = timed(lambda: norton.choose_ranks(net, images, macs=share, **how))
        yield "joint", Spent(choice.ranks, choice.rates, choice.error, seconds)


def pruned_alone(net: nn.Module, images: Tensor, share: float) -> Spent:
    """The first rates within the budget, on the way on which `norton.choose_ranks` prunes jointly."""
    start, whole = time.perf_counter(), norton.complexity(net)
    curves = pruning_curves_of(net, PRUNING)
    probes = {name: [curves.probe(name, FILTERS, 0)] for name in curves.readers()}
    probe_layers(net, probes, images, Calibration(), progress=False)
    path = curves.path({name: cost.macs for name, cost in whole.by_layer.items()})
    place = curves.first_within(path, lambda small: norton.complexity(small).macs <= share * whole.macs)
    level = path[place][0]
    return Spent({}, curves.rates(level), curves.error(level), time.perf_counter() - start)


def compressed(net: nn.Module, images: Tensor, spent: Spent) -> nn.Module:
    if any(rank is not None for rank in spent.ranks.values()):
        net = norton.decompose(net, spent.ranks, objective="outputs", images=images)
    if any(spent.rates.values()):
        net = norton.prune(net, spent.rates, PRUNING.criterion, options=PRUNING.options, images=images)
    return net


def timed(work):
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    sys.exit(main())
