"""Segmentation: cross-entropy of pixels, mean IoU and the accuracy of pixels."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from norton.common.errors import InputError
from norton.graph.logits import OUT, logits_in, resized_to
from norton.training.distillation import Distillation
from norton.training.recipe import Recipe
from norton.training.task import NONE, Task

AUXILIARY = "aux"  # of the dict that torchvision's networks give
AUXILIARY_WEIGHT = 0.5  # as in torchvision's references


class Segmenter(Task):
    """A network with cross-entropy of each pixel; logs loss, mean IoU and pixel accuracy of each split.

    The network gives logits (N, classes, H, W), or a dict that has them as `out`; of another height and width than the
    masks they are resized to them, bilinearly.  The mean is over the classes that occur, in masks or predictions; the
    loss is a mean over pixels.  ignore: the value of pixels that count for nothing; None where all count.
    """

    def __init__(
        self,
        net: nn.Module,
        recipe: Recipe,
        num_classes: int,
        ignore: int | None = None,
        distillation: Distillation | None = None,
    ):
        of = {"num_classes": num_classes, "ignore_index": ignore, "validate_args": False}  # the data have checked them
        scores = {
            "miou": partial(MulticlassJaccardIndex, **of),
            "pixel_accuracy": partial(MulticlassAccuracy, average="micro", **of),
        }
        super().__init__(net, recipe, scores, distillation)
        self.num_classes = num_classes
        self.ignore: int = NONE if ignore is None else ignore

    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        def pixels(output: Any) -> Tensor:
            return logits_of(output, labels, self.num_classes).movedim(1, -1)[labels != self.ignore]

        output, loss = self.taught(images, pixels, partial(self.loss_of_output, labels=labels))
        return logits_of(output, labels, self.num_classes).argmax(1), loss

    def judge(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(self(images), labels, self.num_classes)
        return logits.argmax(1), self.loss(logits, labels)

    def count(self, labels: Tensor) -> int:
        return int((labels != self.ignore).sum())

    def loss_of_output(self, output: Any, labels: Tensor) -> Tensor:
        """The loss to train by: that of the logits, and half of that of an auxiliary output, where there is one."""
        loss = self.loss(logits_of(output, labels, self.num_classes), labels, self.recipe.label_smoothing)
        if not isinstance(output, Mapping) or AUXILIARY not in output:
            return loss
        auxiliary = logits_of(output[AUXILIARY], labels, self.num_classes)
        return loss + AUXILIARY_WEIGHT * self.loss(auxiliary, labels, self.recipe.label_smoothing)

    def loss(self, logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean over the pixels that count; 0 where none does, of which torch's own mean would be no number."""
        total = F.cross_entropy(logits, labels, ignore_index=self.ignore, label_smoothing=smoothing, reduction="sum")
        return total / max(1, self.count(labels))


def logits_of(output: Any, labels: Tensor, num_classes: int) -> Tensor:
    """The logits (N, classes, H, W) that a network gives, of the size of the masks `labels` (N, H, W).

    Raises InputError for an output of another kind or number of classes.
    """
    logits = logits_in(output)
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        found = f"{tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(output).__name__}"
        raise InputError(
            f"the network gives {found} for a batch of images, and segmentation wants logits (N, classes, height, "
            f"width), or a dict that has them as {OUT!r}; choose another network, or wrap it"
        )
    if logits.shape[1] != num_classes:
        raise InputError(
            f"the network gives {logits.shape[1]} numbers for each pixel, and the data have {num_classes} classes; "
            f"make it with model.num_classes={num_classes}, or set data.classes"
        )
    return resized_to(logits, labels)
