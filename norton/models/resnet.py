"""ResNet-50 for ImageNet: torchvision's network, with its channel axes declared."""

from torchvision.models.resnet import Bottleneck, ResNet

from norton.models.base import NETWORKS, Network
from norton.wiring import Wiring


@NETWORKS.register("resnet_50")
class ResNet50(ResNet, Network):
    """He et al. 2016, with the stride on the 3×3 convolutions, as torchvision has it."""

    input_size = (3, 224, 224)
    default_classes = 1000
    spare = ("conv1",)  # only the 3×3 convolutions are decomposed, as published

    def __init__(self, num_classes: int = 1000):
        super().__init__(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)

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
        w.layer("fc", x)
        return w

    def rated_layers(self) -> list[tuple[str, ...]]:
        blocks = [f"layer{s}.{b}" for s in (1, 2, 3, 4) for b in range(len(getattr(self, f"layer{s}")))]
        outputs = [(f"layer{s}.0.conv3",) for s in (1, 2, 3)]
        return [("conv1",), *outputs, *((f"{block}.conv1", f"{block}.conv2") for block in blocks)]
