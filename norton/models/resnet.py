"""ResNet-50 for ImageNet: torchvision's network, with its channel axes declared."""

from torch import Tensor

from norton.graph.wiring import Wiring
from norton.models.base import NETWORKS, Network


@NETWORKS.register("resnet_50")
class ResNet50(Network):
    """He et al. 2016, with the stride on the 3×3 convolutions, as torchvision has it."""

    input_size = (3, 224, 224)
    dataset = "imagenet"
    default_classes = 1000
    spare = ("conv1",)  # only the 3×3 convolutions are decomposed, as published

    def __init__(self, num_classes: int = 1000):
        super().__init__()
        from torchvision.models import resnet50  # over a second to import, which the CIFAR networks need not wait for

        for name, child in resnet50(num_classes=num_classes).named_children():
            self.add_module(name, child)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))

    def wiring(self) -> Wiring:
        w = Wiring(self)
        x = w.norm("bn1", w.layer("conv1", w.input(3)))
        for stage in (1, 2, 3, 4):
            for block in range(len(getattr(self, f"layer{stage}"))):
                name = f"layer{stage}.{block}"
                y = x
                for i in (1, 2, 3):
                    y = w.norm(f"{name}.bn{i}", w.layer(f"{name}.conv{i}", y))
                if block == 0:
                    x = w.norm(f"{name}.downsample.1", w.layer(f"{name}.downsample.0", x))
                x = w.add(x, y)
        w.output(w.layer("fc", x))
        return w

    def rated_layers(self) -> list[tuple[str, ...]]:
        blocks = [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in range(len(getattr(self, f"layer{s}")))]
        outputs = [(f"layer{s}.0.conv3",) for s in (1, 2, 3)]
        return [("conv1",), *outputs, *((f"{block}.conv1", f"{block}.conv2") for block in blocks)]
