"""Small networks and digits to train them on."""

import torch
from torch import nn

from norton.data.datamodule import ClassificationData
from norton.decomposition.cp import CPConv2d

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


def network(width=16, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(4 * width, 10))


def tiny():
    torch.manual_seed(0)
    layers = [CPConv2d(3, 8, (3, 3), 2, stride=(2, 2)), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def digits():
    return ClassificationData("mnist5k", batch_size=100)


def some(count=32):
    return digits().labelled("val", count)


def copied(net):
    return {key: value.clone() for key, value in net.state_dict().items()}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)
