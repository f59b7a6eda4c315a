"""Classification: cross-entropy, top-1 and top-5 accuracy, and what a teacher adds."""

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from norton.common.errors import InputError
from norton.training.distillation import Distillation
from norton.training.recipe import Recipe
from norton.training.task import Task


class Classifier(Task):
    """A network with cross-entropy; logs loss, top-1 and top-5 accuracy of each split."""

    def __init__(self, net: nn.Module, recipe: Recipe, num_classes: int, distillation: Distillation | None = None):
        accuracy = partial(MulticlassAccuracy, num_classes, average="micro")
        ranks = {"top1": 1, "top5": min(5, num_classes)}
        super().__init__(net, recipe, {name: partial(accuracy, top_k=k) for name, k in ranks.items()}, distillation)
        self.num_classes = num_classes

    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        def loss_of(output: Any) -> Tensor:
            return F.cross_entropy(self.logits_of(output), labels, label_smoothing=self.recipe.label_smoothing)

        return self.taught(images, self.logits_of, loss_of)

    def judge(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits_of(self(images))
        return logits, F.cross_entropy(logits, labels)

    def logits_of(self, output: Any) -> Tensor:
        """The logits that a network gives.  Raises InputError for anything else, and for another number of classes."""
        if not isinstance(output, Tensor) or output.dim() != 2:
            found = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(
                f"the network gives {found} for a batch of images, and classes of images want logits (N, classes); for "
                "classes of pixels choose data=segmentation"
            )
        if output.shape[1] != self.num_classes:
            raise InputError(
                f"the network tells {output.shape[1]} classes apart, the data have {self.num_classes}; give a network "
                f"of {self.num_classes} classes, or other data"
            )
        return output
