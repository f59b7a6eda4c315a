"""Time to trace torchvision's ResNet-50, to choose 30% of its filters by a criterion, and to cut them.

    python benchmarks/prune_resnet50.py --criterion l2

The exit code is 1 if that takes over five seconds, the aim for a CPU, or if the network did not get smaller.
"""

import argparse
import sys
import time

import torch
from torchvision.models import resnet50

import norton
from norton.cli.tables import print_table
from norton.graph.slicing import cut_
from norton.pruning.allocation import Allocation
from norton.pruning.channels import choose_channels
from norton.pruning.scoring import Scoring

AIM = 5.0  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--criterion", default="l2")
    parser.add_argument("--rate", type=float, default=0.3)
    args = parser.parse_args()
    net = resnet50()
    images = torch.randn(1, 3, 224, 224)
    seconds, start = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = time.perf_counter() - start, time.perf_counter()

    wiring = norton.wiring_of(net)
    lap("trace")
    how = Allocation(args.rate)
    keep = choose_channels(net, wiring, how.rated(net, wiring), how, Scoring(args.criterion))
    lap("decide")
    before = sum(p.numel() for p in net.parameters())
    cut_(net, wiring, keep)
    lap("cut")
    after = sum(p.numel() for p in net.parameters())
    with torch.no_grad():
        assert net.eval()(images).isfinite().all()

    whole = sum(seconds.values())
    row = {"": f"ResNet-50, {args.criterion}, {torch.get_num_threads()} threads"}
    row |= {f"{name} s": value for name, value in seconds.items()}
    print_table([{**row, "together s": whole, "parameters left %": 100 * after / before}])
    verdict = "within" if whole < AIM else "over"
    print(f"{whole:.2f} s, {verdict} the aim of {AIM:.0f} s; {len(keep)} channel axes cut")
    return 0 if whole < AIM and after < before else 1


if __name__ == "__main__":
    sys.exit(main())
