"""ResNet-20 to ResNet-110 for 32×32 images, with parameter-free shortcuts and the published names."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import wrap_torch_function

from norton.graph.wiring import Wiring
from norton.models.base import NETWORKS, Network


@wrap_torch_function(lambda x, channels, stride: (x,))  # recorded as what it is: see `norton.graph.execution`
def match_channels(x: Tensor, channels: int, stride: int) -> Tensor:
    """The shortcut: every `stride`-th row and column; channels padded with zeros, or cropped, around the middle."""
    missing = channels - x.shape[1]
    front = missing // 2
    x = x[:, :, ::stride, ::stride]
    return F.pad(x, (0, 0, 0, 0, front, missing - front)) if missing else x


match_channels.crops_or_pads = True  # type: ignore[attr-defined]


class BasicBlock(nn.Module):
    """first: of its stage, where widths change or, once pruned, may change."""

    def __init__(self, inplanes: int, planes: int, stride: int, first: bool):
        super().__init__()
        self.stride, self.first = stride, first
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + (match_channels(x, y.shape[1], self.stride) if self.first else x))


class CifarResNet(Network):
    """He et al. 2016, section 4.2, option A shortcuts: three stages of `depth` blocks, widths 16, 32, 64."""

    depth: int
    head: str  # the classifier's name differs between the published networks

    def __init__(self, num_classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        for stage, (inplanes, planes, stride) in enumerate([(16, 16, 1), (16, 32, 2), (32, 64, 2)], start=1):
            blocks = [BasicBlock(inplanes, planes, stride, first=True)]
            blocks += [BasicBlock(planes, planes, 1, first=False) for _ in range(self.depth - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.add_module(self.head, nn.Linear(64, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return getattr(self, self.head)(self.avgpool(x).flatten(1))

    def wiring(self) -> Wiring:
        w = Wiring(self)
        x = w.norm("bn1", w.layer("conv1", w.input(3)))
        for stage in (1, 2, 3):
            for block in range(self.depth):
                name = f"layer{stage}.{block}"
                y = w.norm(f"{name}.bn1", w.layer(f"{name}.conv1", x))
                y = w.norm(f"{name}.bn2", w.layer(f"{name}.conv2", y))
                # Stem and stages have rates of their own, so the first block of a stage joins two axes.
                x = w.shift(x, y) if block == 0 else w.add(x, y)
        w.output(w.layer(self.head, x))
        return w

    def rated_layers(self) -> list[tuple[str, ...]]:
        middles = [(f"layer{stage}.{block}.conv1",) for stage in (1, 2, 3) for block in range(self.depth)]
        return [("conv1",), ("layer1.0.conv2",), ("layer2.0.conv2",), *middles]


@NETWORKS.register("resnet_20")
class ResNet20(CifarResNet):
    depth = 3
    head = "fc"


@NETWORKS.register("resnet_32")
class ResNet32(CifarResNet):
    depth = 5
    head = "fc"


@NETWORKS.register("resnet_44")
class ResNet44(CifarResNet):
    depth = 7
    head = "fc"


@NETWORKS.register("resnet_56")
class ResNet56(CifarResNet):
    depth = 9
    head = "fc"


@NETWORKS.register("resnet_110")
class ResNet110(CifarResNet):
    depth = 18
    head = "linear"
