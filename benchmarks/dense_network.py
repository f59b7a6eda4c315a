"""What the benchmarks share that compress a trained network without training: no benchmark itself."""

import argparse
import logging
import warnings

import torch
from torch import nn

import norton
from norton.checkpoints.files import read
from norton.data.datamodule import ClassificationData
from norton.training import evaluate


def arguments(description: str) -> argparse.ArgumentParser:
    """What the benchmarks without training are asked for alike."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--data", help="by default what the checkpoint was trained on")
    parser.add_argument("--images", type=int, default=1000)
    return parser


def opened(args: argparse.Namespace) -> tuple[nn.Module, ClassificationData, torch.Tensor]:
    """The dense network, the data, and the calibration images."""
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")
    net, name = norton.load(args.checkpoint), args.data or read(args.checkpoint)["metrics"]["data"]
    options = {"copies": [3, 2, 2]} if name == "clutter" else {}
    data = ClassificationData(name, 128, **options)
    print(f"dense: {accuracy(net, data):.2f}%; {args.images} calibration images; {torch.get_num_threads()} threads")
    return net, data, data.calibration_images(args.images)


def accuracy(net: nn.Module, data: ClassificationData) -> float:
    return evaluate(net, data, enable_progress_bar=False)["top1"]
