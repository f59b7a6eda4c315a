"""How much of many published networks can be pruned, how exactly, and why layers stay whole.

    python benchmarks/coverage.py                       # 48 networks of timm, a process each; pip install timm
    python benchmarks/coverage.py --names resnet18 dla34 --torchvision alexnet

Per network, with random weights: seconds to find its channels, share of the MACs that are left when 30% of all filters
go by `l2`, largest error against the network whose removed filters are zero (in float64, relative to what images
change in the outputs), filters that stay, and the most frequent reasons why layers do.  Beside it what Torch-Pruning
leaves, where it is installed: `pip install torch-pruning`.  Of some networks it takes far more filters than it is asked
for (of a GhostNet half): then what is left here at as many filters stands beside it too.
"""

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.dead import largest_error, outputs, with_dead_filters

import norton
from norton.common.errors import first_line
from norton.graph.layers import width
from norton.graph.wiring import OUTPUT

RATE = 0.3
ENOUGH = 0.8  # a network counts as pruned if no more of its MACs are left
EXACT = 1e-9
CLOSE = 0.02  # shares of filters that count as the same
EACH = norton.PruneOptions(min_filters=1)  # of all layers, small ones too, as Torch-Pruning does
SIDES = {"inception_v4": 224, "vit_tiny_patch16_224": 224, "inception_v3": 299, "vit_b_16": 224, "maxvit_t": 224}
NAMES = [
    *("resnet18", "resnetv2_50", "regnety_002", "efficientnet_b0", "efficientnetv2_rw_t", "mobilenetv3_small_100"),
    *("mobilenetv4_conv_small", "convnext_atto", "convnextv2_atto", "repvgg_a0", "ghostnet_100", "ghostnetv2_100"),
    *("hrnet_w18_small", "dla34", "densenet121", "ese_vovnet19b_dw", "cspresnet50", "darknet53", "dpn68"),
    *("res2net50_26w_4s", "resnest14d", "skresnet18", "xception41", "inception_v4", "nfnet_f0"),
    *("tf_efficientnet_lite0", "rexnet_100", "hardcorenas_a", "mixnet_s", "fbnetc_100", "edgenext_xx_small"),
    *("fastvit_t8", "mobileone_s0", "seresnet50", "ecaresnet26t", "cs3darknet_s", "tinynet_e", "lcnet_050"),
    *("repghostnet_050", "selecsls42", "gernet_s", "mobilevit_xxs", "starnet_s1", "inception_next_tiny"),
    *("poolformer_s12", "vit_tiny_patch16_224", "resnet50d", "wide_resnet50_2"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="*", help="networks of timm; by default 48 varied ones")
    parser.add_argument("--torchvision", nargs="*", default=[], help="networks of torchvision")
    parser.add_argument("--limit", type=float, default=120, help="seconds for one network and one tool")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--tool", default="norton", help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=RATE, help="share of all filters that go, for all tools")
    args = parser.parse_args()
    if args.one:
        print(json.dumps((measured if args.tool == "norton" else by_torch_pruning)(args.one, args.rate)))
        return 0
    named = args.names if args.names is not None else [] if args.torchvision else NAMES
    rows = []
    for name in [*(f"timm.{name}" for name in named), *(f"torchvision.{name}" for name in args.torchvision)]:
        own, other = (in_a_process(name, tool, args.rate, args.limit) for tool in ("norton", "torch_pruning"))
        if other.get("filters", 1) < own.get("filters", 0) - CLOSE:
            own["at as many"] = in_a_process(name, "norton", 1 - other["filters"], args.limit)
        rows.append((own, other))
        print(line(name, own, other), flush=True)
    print(totals([own for own, _ in rows], [other for _, other in rows]))
    return 0


def in_a_process(name: str, tool: str, rate: float, limit: float) -> dict[str, Any]:
    """What a tool makes of a network; a tool that does not end is stopped."""
    command = [sys.executable, __file__, "--one", name, "--tool", tool, "--rate", str(rate)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"problem": f"not done within {limit:.0f} s"}
    if done.returncode:
        return {"problem": done.stderr.strip().splitlines()[-1][:150]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def network(name: str) -> tuple[nn.Module, int]:
    """A network with random weights and statistics, in double precision, and the side of its images."""
    library, _, short = name.partition(".")
    if library == "timm":
        import timm

        net = timm.create_model(short, num_classes=10)
    else:
        import torchvision

        net = torchvision.models.get_model(short, weights=None, num_classes=10)
    side = SIDES.get(short, 128)
    return fitted(randomised(net.double()), torch.randn(4, 3, side, side).double()).eval(), side


@torch.no_grad()
def randomised(net: nn.Module) -> nn.Module:
    """Scales and statistics of norms at random; no offsets, so that what is zero stays so."""
    generator = torch.Generator().manual_seed(0)
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point() and (key.endswith(("running_var", "gamma")) or is_scale(key, tensor)):
            tensor.uniform_(0.7, 1.3, generator=generator)
        elif key.endswith(
            ("running_mean", "beta", "pos_embed", "cls_token", "pos_embedding", "class_token", "bias_table")
        ):
            tensor.zero_()
        elif tensor.dim() > 1 and not tensor.any():  # a classifier that begins at zero hides all before it
            tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
    for layer in net.modules():
        for key, tensor in layer._parameters.items():
            if key == "bias" and tensor is not None and not is_writer(layer):
                tensor.zero_()
    return net


@torch.no_grad()
def fitted(net: nn.Module, images: Tensor) -> nn.Module:
    """With the variances of BatchNorms as they are, so that what the images say reaches the outputs."""
    norms = [layer for layer in net.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    net.train()(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.running_mean.zero_()
        norm.running_var.clamp_(min=1e-3)
    return net


def is_scale(key: str, tensor: Tensor) -> bool:
    return tensor.dim() == 1 and key.endswith("weight")


def is_writer(layer: nn.Module) -> bool:
    return hasattr(layer, "out_channels") or hasattr(layer, "out_features")


def measured(name: str, rate: float) -> dict[str, Any]:
    """How norton finds and cuts the channels of a network."""
    net, side = network(name)
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)).double()
    start = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wiring = norton.wiring_of(net, (3, side, side))
            seconds = time.process_time() - start
            small = norton.prune(net, rate, "l2", options=EACH, example=(3, side, side))
    except norton.InputError as error:
        return {"problem": first_line(error), "seconds": time.process_time() - start}
    keep = {wiring.axis_of(first): kept for first, kept in small.plan[-1]["keep"].items()}
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), (images,))
    axes = [axis for axis in wiring.writers if wiring.frozen.get(axis) != OUTPUT]
    frozen = {axis: wiring.frozen[axis] for axis in axes if axis in wiring.frozen}
    return {
        "seconds": seconds,
        "left": executed(small.eval(), images) / executed(net, images),
        "filters": filters(small) / filters(net),
        "error": largest_error(outputs(small, (images,)), expected),
        "whole": sum(map(wiring.width, frozen)) / max(1, sum(map(wiring.width, axes))),
        "reasons": Counter(kind_of(reason) for reason in frozen.values()).most_common(3),
    }


def kind_of(reason: str) -> str:
    """A reason without the layer that it names."""
    place, _, what = reason.partition(": ")
    return f"{place.split(' in ')[0]}: {what}" if what and " in " in place else what or place


@torch.no_grad()
def executed(net: nn.Module, images: Tensor) -> float:
    """MACs as torch counts what is executed."""
    with FlopCounterMode(display=False) as counter:
        net(images)
    return counter.get_total_flops() / 2


def filters(net: nn.Module) -> int:
    return sum(width(layer) for layer in net.modules() if is_writer(layer))


def by_torch_pruning(name: str, rate: float) -> dict[str, Any]:
    """The shares of the MACs and filters that Torch-Pruning leaves, the classifier left whole."""
    try:
        import torch_pruning
    except ImportError:
        return {"problem": "not installed"}
    net, side = network(name)
    net, images = net.float(), torch.randn(1, 3, side, side)
    before, filters_before = executed(net, images), filters(net)
    classifier = [m for m in net.modules() if isinstance(m, nn.Linear | nn.Conv2d) and width(m) == 10]
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.MagnitudePruner(
        net, images, importance=importance, pruning_ratio=rate, ignored_layers=classifier
    )
    pruner.step()
    return {"left": executed(net, images) / before, "filters": filters(net) / filters_before}


def line(name: str, own: dict[str, Any], other: dict[str, Any]) -> str:
    beside = "" if other.get("problem") == "not installed" else f", Torch-Pruning {share(other)}"
    if "at as many" in own:
        beside += f" with {other['filters']:.3f} of the filters, here {share(own['at as many'])} at as many"
    if "problem" in own:
        return f"{name}: {own['problem']}{beside}"
    reasons = "; ".join(f"{count} {reason}" for reason, count in own["reasons"])
    return (
        f"{name}: traced in {own['seconds']:.2f} s, {own['left']:.3f} of the MACs left{beside}, error "
        f"{own['error']:.0e}, {100 * own['whole']:.0f}% of the filters stay whole" + (f": {reasons}" if reasons else "")
    )


def share(row: dict[str, Any]) -> str:
    return f"{row['left']:.3f}" if "left" in row else f"fails ({row['problem'][:60]})"


def totals(own: list[dict[str, Any]], other: list[dict[str, Any]]) -> str:
    enough, others = ([row for row in rows if row.get("left", 1) <= ENOUGH] for rows in (own, other))
    wrong = [row for row in own if row.get("error", 0) > EXACT]
    beside = "" if other[0].get("problem") == "not installed" else f" (Torch-Pruning: {len(others)})"
    return (
        f"{len(enough)} of {len(own)} lose a fifth of their MACs or more{beside}; {len(wrong)} wrong; "
        f"{sum('problem' in row for row in own)} refused; "
        f"the slowest traced in {max((row.get('seconds', 0) for row in own), default=0):.1f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
