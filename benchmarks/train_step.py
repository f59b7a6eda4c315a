"""A training step of a decomposed network: each way to compute its layers against the plain one.

The baseline is the published layer as it is: three convolutions, a view and a sum over ranks (`factored`).  Forward,
backward and SGD update; the ways take turns; medians.  `fit` is what training does on a CPU: `fast` (grouped at rank 1,
else composed) with images whose channels lie last.  Exit code 1 if it is slower than the baseline.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

import norton
from norton.cli.tables import print_table

FORMS = ["factored", "grouped", "composed", "fast"]
WAYS = [*FORMS, "fit"]


def step_time(net, optimizer, images, labels, bfloat16):
    start = time.perf_counter()
    optimizer.zero_grad()
    with torch.autocast(images.device.type, torch.bfloat16, enabled=bfloat16):
        loss = F.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arch, rank, rates, args):
    """Way → median seconds of a step."""
    net = norton.build(arch, rank, rates, num_classes=10).to(args.device).train()
    images = torch.randn(args.batch, *net.input_size, device=args.device)
    labels = torch.randint(0, 10, (args.batch,), device=args.device)
    nets = {way: norton.set_form_(copy.deepcopy(net), "fast" if way == "fit" else way) for way in WAYS}
    batches = dict.fromkeys(FORMS, images) | {"fit": images.contiguous(memory_format=torch.channels_last)}
    optimizers = {way: torch.optim.SGD(each.parameters(), 1e-3, 0.9) for way, each in nets.items()}
    times = {way: [] for way in WAYS}
    for turn in range(args.repeats + 1):
        for way in WAYS:
            elapsed = step_time(nets[way], optimizers[way], batches[way], labels, args.bfloat16)
            if turn:  # the first one warms up
                times[way].append(elapsed)
    return {way: median(values) for way, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="as trainer.precision=bf16-mixed")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()

    cases = [
        ("resnet_56", 1, None),
        ("resnet_56", 3, "[0.]+[0.2]*29"),
        *(("vgg_16_bn", rank, None) for rank in (1, 2, 3)),
    ]
    rows, results, slower = [], [], False
    for arch, rank, rates in cases:
        times = measure(arch, rank, rates, args)
        ratio, layout = (times["fit"] / times[other] for other in ("factored", "fast"))
        slower |= ratio > 1
        milliseconds = {way: f"{1000 * times[way]:.0f}" for way in WAYS}
        network = {"network": f"{arch}, pruned" if rates else arch, "rank": rank}
        rows.append({**network, **milliseconds, "fit / factored": ratio, "fit / fast": layout})
        ratios = {"to_factored": ratio, "to_fast": layout}
        results.append({"arch": arch, "rank": rank, "rates": rates, "seconds": times, "ratios": ratios})
    print_table(rows, f"milliseconds of a step, batch {args.batch}")
    print("FAIL: slower than the plain layer" if slower else "PASS: never slower than the plain layer")
    if args.json:
        args.json.write_text(json.dumps(results, indent=2))
    raise SystemExit(int(slower))


if __name__ == "__main__":
    main()
