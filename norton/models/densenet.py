"""DenseNet-40 (growth 12) for 32×32 images, with the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from norton.graph.wiring import Wiring
from norton.models.base import NETWORKS, Network

GROWTH, LAYERS = 12, 12


class DenseLayer(nn.Module):
    def __init__(self, inplanes: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inplanes, GROWTH, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv1(self.relu(self.bn1(x)))], 1)


class Transition(nn.Module):
    def __init__(self, planes: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(planes, planes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv1(self.relu(self.bn1(x))), 2)


@NETWORKS.register("densenet_40")
class DenseNet40(Network):
    """Huang et al. 2017, without bottlenecks or compression: three dense blocks of 12 layers."""

    def __init__(self, num_classes: int = 10):
        super().__init__()
        planes = 24
        self.conv1 = nn.Conv2d(3, planes, 3, padding=1, bias=False)
        for block in (1, 2, 3):
            self.add_module(f"dense{block}", nn.Sequential(*(DenseLayer(planes + GROWTH * i) for i in range(LAYERS))))
            planes += GROWTH * LAYERS
            if block < 3:
                self.add_module(f"trans{block}", Transition(planes))
        self.bn = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(8)
        self.fc = nn.Linear(planes, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trans1(self.dense1(self.conv1(x)))
        x = self.dense3(self.trans2(self.dense2(x)))
        return self.fc(self.avgpool(self.relu(self.bn(x))).flatten(1))

    def wiring(self) -> Wiring:
        w = Wiring(self)
        x = w.layer("conv1", w.input(3))
        for block in (1, 2, 3):
            for i in range(LAYERS):
                name = f"dense{block}.{i}"
                x = w.cat(x, w.layer(f"{name}.conv1", w.norm(f"{name}.bn1", x)))
            if block < 3:
                x = w.layer(f"trans{block}.conv1", w.norm(f"trans{block}.bn1", x))
        w.output(w.layer("fc", w.flatten(w.norm("bn", x), 1)))
        return w

    def rated_layers(self) -> list[tuple[str, ...]]:
        layers: list[tuple[str, ...]] = [()]  # the stem's rate is ignored, as published
        for block in (1, 2, 3):
            layers += [(f"dense{block}.{i}.conv1",) for i in range(LAYERS)]
            if block < 3:
                layers.append((f"trans{block}.conv1",))
        return layers

    def full_width(self, layer: str, wiring: Wiring, widths: dict[str, int]) -> int:
        if not layer.startswith("trans"):
            return super().full_width(layer, wiring, widths)
        # A transition's rate is a fraction of what the pruned layers before it deliver.
        axes = wiring.axes_in(dict(wiring.reads)[layer])
        return sum(widths.get(wiring.name(axis), wiring.width(axis)) for axis in axes)
