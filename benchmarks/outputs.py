"""Accuracy before any training: decomposed for weights, and for outputs, form by form.

    python -m experiments.ablation experiment=sweep_outputs # makes the dense network, fine-tunes too
    python benchmarks/outputs.py --checkpoint outputs/sweeps/shared/dense_*.pt

A half-width VGG-16-BN on `clutter`; any other checkpoint that says its data, or --data.  All forms from the same
calibration images, without labels; "+ BN": BatchNorm re-estimated from them afterwards.  Top-1 accuracy on the test
split, in percent, and the seconds that the decomposition took.  The ratio to the weight fit's time is measured beside.
"""

import sys
import time

import torch
from dense_network import accuracy, arguments, opened
from torch import nn

import norton
from norton import Calibration
from norton.calibration import reestimate_batchnorm_
from norton.cli.tables import print_table

FORMS = {
    "weights": None,
    "heads": Calibration(sequential=False, sweeps=0),
    "alternating": Calibration(sequential=False),
    "sequential, heads": Calibration(sweeps=0),
    "sequential": Calibration(),
}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    args = parser.parse_args()
    net, data, images = opened(args)
    rows = []
    for rank in args.ranks:
        base = None
        for form in args.forms:
            start = time.perf_counter()
            small = decomposed(net, rank, images, FORMS[form])
            seconds = time.perf_counter() - start
            base = base or seconds
            plain = accuracy(small, data)
            calibrated = accuracy(reestimate_batchnorm_(small, images), data)
            row = {"rank": rank, "form": form, "top-1 %": plain, "+ BN": calibrated, "seconds": f"{seconds:.1f}"}
            rows.append(row | {f"times {args.forms[0]}": f"{seconds / base:.1f}"})
            print(f"rank {rank}, {form}: {plain:.2f}%, + BN {calibrated:.2f}%, {seconds:.1f} s", flush=True)
    print_table(rows, f"{type(net).__name__} on {data.name}, no training")
    return 0


def decomposed(net: nn.Module, rank: int, images: torch.Tensor, how: Calibration | None) -> nn.Module:
    if how is None:
        return norton.decompose(net, rank)
    return norton.decompose(net, rank, objective="outputs", images=images, calibration=how)


if __name__ == "__main__":
    sys.exit(main())
