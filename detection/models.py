"""torchvision's detectors over a compressed ResNet-50 of this project."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d

from norton.common.checks import is_whole_number
from norton.common.errors import InputError
from norton.graph.plan import plan_of

DETECTORS = {"fasterrcnn": FasterRCNN, "maskrcnn": MaskRCNN, "keypointrcnn": KeypointRCNN}
CLASSES = {"fasterrcnn": 91, "maskrcnn": 91, "keypointrcnn": 2}  # of COCO, with the background
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # in the order in which more and more of them are trained


def build_detector(
    kind: str,
    backbone: nn.Module,
    num_classes: int | None = None,
    *,
    trainable_layers: int = 5,
    frozen_batchnorm: bool = False,
    categories: Mapping[int, str] | None = None,
    **options: Any,
) -> nn.Module:
    """A detector of torchvision with FPN over a copy of a ResNet-50 of this project, dense or compressed.

    kind: fasterrcnn, maskrcnn or keypointrcnn.  num_classes: with the background; COCO's by default.
    trainable_layers: how many of conv1, layer1, ... layer4 are trained, the last ones first (torchvision trains 3 of a
    pretrained backbone).  frozen_batchnorm: the backbone's statistics and factors stay as they are.
    categories: label → name, for pictures.  options: of the torchvision class, such as min_size, num_keypoints.

    Raises InputError for another kind or backbone.
    """
    if kind not in DETECTORS:
        raise InputError(f"unknown detector {kind!r}; choose one of {', '.join(DETECTORS)}")
    body = fpn_backbone(backbone, trainable_layers, frozen_batchnorm)
    num_classes = CLASSES[kind] if num_classes is None else num_classes
    known = inspect.signature(DETECTORS[kind].__init__).parameters
    if unknown := sorted(set(options) - set(list(known)[3:-1])):  # torchvision swallows what it does not know
        raise InputError(f"{kind} has no option {', '.join(unknown)}; it has {', '.join(list(known)[3:-1])}")
    for name in ("min_size", "max_size"):
        if not isinstance(size := options.get(name, 800), int | tuple | list) or size == 0:
            raise InputError(f"{kind}'s {name} is {size!r}; it must be a number of pixels")
    try:
        net = DETECTORS[kind](body, num_classes, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"{kind}: torchvision does not take these options, {options} ({error})") from None
    net.arch, net.plan = kind, plan_of(backbone)
    choices = {"trainable_layers": trainable_layers, "frozen_batchnorm": frozen_batchnorm}
    choices["categories"] = dict(categories or {})
    net.recipe = {"kind": kind, "num_classes": num_classes, **choices, **options}
    return net


def fpn_backbone(backbone: nn.Module, trainable_layers: int, frozen_batchnorm: bool) -> BackboneWithFPN:
    """The stages of a ResNet-50 with a feature pyramid as wide as they are."""
    if getattr(backbone, "arch", None) != "resnet_50":
        name = getattr(backbone, "arch", None) or type(backbone).__name__
        raise InputError(
            f"the backbone is a {name}; detectors stand on a resnet_50 of this project, dense or compressed"
        )
    if not is_whole_number(trainable_layers) or not 0 <= trainable_layers <= 5:
        raise InputError(f"trainable_layers is {trainable_layers!r}; choose 0 to 5")
    backbone = copy.deepcopy(backbone)
    trained = (*STAGES[:trainable_layers], *(["bn1"] if trainable_layers == 5 else []))
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    if frozen_batchnorm:
        _freeze_batchnorm_(backbone)
    widths = [getattr(backbone, f"layer{stage}")[0].conv3.out_channels for stage in (1, 2, 3, 4)]
    return BackboneWithFPN(backbone, {f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)}, widths, 256)


def _freeze_batchnorm_(net: nn.Module) -> None:
    for name, layer in list(net.named_modules()):
        if isinstance(layer, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(layer.num_features, layer.eps)
            frozen.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "num_batches_tracked"})
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, frozen)
