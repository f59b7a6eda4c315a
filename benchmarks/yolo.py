"""The networks in ultralytics' YOLOv8n and YOLO11n, with random weights: pruned, decomposed, fitted, exported, trained.

    pip install ultralytics                              # which norton itself never imports
    pip install 'norton[export]'                         # for ONNX
    python benchmarks/yolo.py                            # some minutes on one core
    python benchmarks/yolo.py --names yolo11n --side 640

Per network, when 30% of all filters go by `l2`: share of the MACs that are left, largest error against the network
whose removed filters are zero (in float64, relative to what images change in the outputs), what stays whole and why,
and seconds per image of the dense and of the pruned network, as they are and deployed.  Errors of the outputs after a
CP decomposition to rank 4 and after pruning, without and with fitting to outputs on eight random images, relative to
what images change.  Relative error of the ONNX file and of a network read from its file.  Then ultralytics' own
`predict`, and an epoch of its training on eight made-up images, go on with the network, and its parameters are counted.
"""

import argparse
import copy
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coverage import RATE, executed, fitted, randomised
from helpers.dead import largest_error, outputs, with_dead_filters
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import norton
from norton.common.tables import text_table
from norton.deployment.export import to_onnx


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", nargs="+", default=["yolov8n", "yolo11n"], help="networks of ultralytics")
    parser.add_argument("--side", type=int, default=320, help="of the images, a multiple of 32")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = [measured(name, args.side) for name in args.names]
    rows = [
        {"": key} | {name: column[key] for name, column in zip(args.names, columns, strict=True)} for key in columns[0]
    ]
    print(text_table(rows, f"Networks of ultralytics, images of {args.side} x {args.side}", most=len(rows)))
    return 0


def measured(name: str, side: int) -> dict[str, Any]:
    from ultralytics import YOLO

    torch.manual_seed(0)
    yolo, images = YOLO(f"{name}.yaml"), torch.rand(8, 3, side, side)
    net = fitted(randomised(yolo.model), images).eval()
    found = pruned(copy.deepcopy(net).double(), images[:2].double())
    small = norton.prune(net, RATE, criterion="l2", example=images[:2]).eval()
    found |= errors(net, small, images) | written(net, small, images[:2])
    found |= {
        f"{key}, seconds per image": f"{seconds(n, images[:1]):.3f}" for key, n in forms(net, small, images).items()
    }
    return found | gone_on_with(yolo, small)


def pruned(net: nn.Module, images: Tensor) -> dict[str, Any]:
    """The cut network beside the one whose removed filters are zero."""
    start = time.process_time()
    wiring = norton.wiring_of(net, images)
    traced = time.process_time() - start
    small = norton.prune(net, RATE, criterion="l2", example=images).eval()
    keep = {wiring.axis_of(first): kept for first, kept in small.plan[-1]["keep"].items()}
    both = small, with_dead_filters(net, wiring.gone_filters(keep))
    print(*(f"{layer} stays whole: {reason}" for layer, reason in wiring.left_whole.items()), sep="\n")
    return {
        "traced in s": f"{traced:.1f}",
        "axes left whole": f"{len(wiring.frozen)} of {len(wiring.writers)}",
        "MACs left": f"{executed(small, images) / executed(net, images):.3f}",
        "error against dead filters": f"{largest_error(*(outputs(each, (images,)) for each in both)):.0e}",
    }


def errors(net: nn.Module, small: nn.Module, images: Tensor) -> dict[str, str]:
    options = norton.PruneOptions(compensate="outputs")
    cp: dict[str, Any] = {"rank": 4, "example": images[:2]}
    made = {
        "CP of rank 4": norton.decompose(net, **cp),
        "CP of rank 4, fitted": norton.decompose(net, **cp, objective="outputs", images=images),
        "pruned": small,
        "pruned, compensated": norton.prune(
            net, RATE, criterion="l2", images=images, options=options, example=images[:2]
        ),
        "Tucker of full rank": norton.decompose(net, {"fraction": 1.0}, "tucker", example=images[:2]),
    }
    expected = given(net, images)
    return {f"{key}, output error": f"{relative(given(other, images), expected):.2g}" for key, other in made.items()}


def written(net: nn.Module, small: nn.Module, images: Tensor) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        again = norton.load(norton.save(small, Path(folder) / "small.pt"), net=net)
        exported = to_onnx(small, images, Path(folder) / "small.onnx")
    difference = relative(given(again, images), given(small, images))
    return {"read from its file, error": f"{difference:.0e}", "ONNX, error": f"{exported.difference:.0e}"}


def forms(net: nn.Module, small: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    named = {"dense": net, "pruned": small}
    return named | {f"{key}, deployed": norton.deploy(each, images[:1]) for key, each in named.items()}


def gone_on_with(yolo: Any, small: nn.Module) -> dict[str, Any]:
    """Their `predict` and their training, which makes its network in `get_model`."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Trainer(DetectionTrainer):
        def get_model(self, *args: Any, **kwargs: Any) -> nn.Module:
            return small

    before, picture = parameters(small), np.zeros((64, 64, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        yolo.model = small
        yolo.predict(picture, imgsz=64, verbose=False)
        silent = {"plots": False, "verbose": False, "workers": 0, "project": folder, "device": "cpu"}
        yolo.train(trainer=Trainer, data=made_up(Path(folder)), epochs=1, imgsz=64, batch=4, **silent)
        yolo.predict(picture, imgsz=64, verbose=False)
    return {"parameters": f"{before:,}", "parameters after their training": f"{parameters(yolo.model):,}"}


def made_up(folder: Path) -> str:
    """Eight random images with a box each, in the form that ultralytics reads."""
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for place in range(8):
        Image.fromarray(generator.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"images/{place}.png")
        (folder / f"labels/{place}.txt").write_text(f"{place} 0.5 0.5 0.4 0.4\n")
    names = "".join(f"  {place}: thing {place}\n" for place in range(80))
    (folder / "data.yaml").write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}")
    return str(folder / "data.yaml")


def seconds(net: nn.Module, images: Tensor) -> float:
    """The least of some runs."""
    times = []
    with torch.inference_mode():
        for _ in range(7):
            start = time.perf_counter()
            net(images)
            times.append(time.perf_counter() - start)
    return min(times)


def flat(outputs: Any) -> Tensor:
    return torch.cat([x.flatten(1) for x in tree_leaves(outputs) if isinstance(x, Tensor)], 1)


@torch.no_grad()
def given(net: nn.Module, images: Tensor) -> Tensor:
    return flat(net.eval()(images))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / (expected - expected.mean(0)).norm()).item()


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


if __name__ == "__main__":
    sys.exit(main())
