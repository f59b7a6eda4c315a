"""VGG-16 with BatchNorm for 32×32 images, with the names of the published checkpoints."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.graph.wiring import Wiring
from norton.models.base import NETWORKS, Network

WIDTHS: list[Any] = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512]


@NETWORKS.register("vgg_16_bn")
class VGG16BN(Network):
    """Simonyan & Zisserman 2015, configuration D with BatchNorm and one hidden linear layer."""

    optional_rates = 1

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.features = nn.Sequential()
        width = 3
        for i, out in enumerate(WIDTHS):  # names count positions in the list, poolings included
            if out == "M":
                self.features.add_module(f"pool{i}", nn.MaxPool2d(2, 2))
            else:
                self.features.add_module(f"conv{i}", nn.Conv2d(width, out, 3, padding=1))
                self.features.add_module(f"norm{i}", nn.BatchNorm2d(out))
                self.features.add_module(f"relu{i}", nn.ReLU(inplace=True))
                width = out
        self.classifier = nn.Sequential(
            OrderedDict(
                linear1=nn.Linear(width, 512),
                norm1=nn.BatchNorm1d(512),
                relu1=nn.ReLU(inplace=True),
                linear2=nn.Linear(512, num_classes),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.features(x), 2)
        return self.classifier(torch.flatten(x, 1))

    def wiring(self) -> Wiring:
        w = Wiring(self)
        x = w.input(3)
        for i in self._convolutions():
            x = w.norm(f"features.norm{i}", w.layer(f"features.conv{i}", x))
        x = w.norm("classifier.norm1", w.layer("classifier.linear1", w.flatten(x, 1)))
        w.output(w.layer("classifier.linear2", x))
        return w

    def rated_layers(self) -> list[tuple[str, ...]]:
        return [(f"features.conv{i}",) for i in self._convolutions()]

    @staticmethod
    def _convolutions() -> list[int]:
        return [i for i, out in enumerate(WIDTHS) if out != "M"]
