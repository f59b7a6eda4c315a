"""What all tasks share as LightningModules: steps, logging, and the published optimiser and schedule."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from norton.common.errors import InputError, first_line
from norton.training.distillation import Distillation
from norton.training.layout import Layout
from norton.training.recipe import Recipe

NONE = -100  # the label that torch ignores, where nobody says another
SPLITS = ("fit", "val", "test")


def scale_penalty(net: nn.Module) -> Tensor:
    """The sum of |γ| over all BatchNorms of a network.  Raises InputError where there are none to be thinned out."""
    norms = [layer for layer in nn.Module.modules(net) if isinstance(layer, _BatchNorm) and layer.affine]
    if not norms:
        raise InputError("training.sparsity thins out the scales of BatchNorm, and this network has none; set it to 0")
    return sum(layer.weight.abs().sum() for layer in norms)


def as_numbers(labels: Tensor) -> Tensor:
    """Labels in the whole numbers that torch's losses take, of whichever a loader gives: masks are often of uint8."""
    return labels if labels.is_floating_point() else labels.long()


def check_labels(labels: Tensor, classes: int, ignore: int | None = None) -> None:
    """Raise InputError for labels that are no whole numbers, or none of the classes, but those to ignore."""
    if labels.is_floating_point():
        raise InputError(f"labels are of {labels.dtype}; give the numbers of classes, whole ones, 0 to {classes - 1}")
    outside = labels[(labels < 0) | (labels >= classes)]
    outside = outside if ignore is None else outside[outside != ignore]
    if len(outside):
        raise InputError(
            f"a label is {outside[0].item()}; the network tells {classes} classes apart, whose labels are 0 to "
            f"{classes - 1}"
        )


@contextmanager
def taking(images: Tensor) -> Iterator[None]:
    """Raises InputError where a network fails inside at images in whole numbers, which few take."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        if images.is_floating_point():
            raise
        raise InputError(
            f"the network does not take images of {images.dtype} ({first_line(error)}); give floating-point numbers"
        ) from error


class Task(lightning.LightningModule):
    """A network with a loss and scores; logs them for each split, of training the first score alone.

    scores: name → what makes the metric, a fraction; the first one decides which epoch is best.  distillation: what a
    teacher adds to the loss of training, see `Recipe`.  num_classes, ignore: what labels may be.
    """

    num_classes: int
    ignore: int | None = None

    def __init__(
        self, net: nn.Module, recipe: Recipe, scores: Mapping[str, partial], distillation: Distillation | None = None
    ):
        super().__init__()
        self.net, self.recipe, self.distillation = net, recipe, distillation
        self.layout = Layout(self.nets(), modes=(True, False) if recipe.epochs else (False,))
        self.names = tuple(scores)
        self.scores = nn.ModuleDict({f"{split}_{name}": scores[name]() for split in SPLITS for name in scores})

    def nets(self) -> list[nn.Module]:
        """All that images are given to."""
        return [self.net, *([self.distillation.teacher.net] if self.distillation else [])]

    def learn(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the scores take as predicted, and the loss to train by."""
        raise NotImplementedError

    def judge(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What the scores take as predicted, and the loss to report."""
        raise NotImplementedError

    def taught(
        self, images: Tensor, rows: Callable[[Any], Tensor], loss_of: Callable[[Any], Tensor]
    ) -> tuple[Any, Tensor]:
        """What the network gives, and the loss of its labels with what a teacher adds, if there is one.

        rows: of what a network gives, see `Distillation`.  loss_of: the loss of the labels, of the same.
        """
        teaching = self.distillation
        if teaching is None:
            output = self(images)
            return output, loss_of(output)
        with taking(images):
            output, added = teaching(self.net, images, rows)
        return output, (1 - teaching.weight) * loss_of(output) + added

    def read(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch in the types, and the layout, that the network and the loss take."""
        images, labels = batch
        images = images.to(self.dtype) if images.is_floating_point() else images
        return self.layout(images), as_numbers(labels)

    def count(self, labels: Tensor) -> int:
        """Over how many a batch's loss is a mean."""
        return len(labels)

    def forward(self, x: Tensor) -> Tensor:
        with taking(x):
            return self.net(x)

    def on_before_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Labels are checked on the CPU: on a GPU torch would stop the process at one that is no class."""
        check_labels(batch[1], self.num_classes, self.ignore)
        return batch

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = self.read(batch)
        predicted, loss = self.learn(images, labels)
        if self.recipe.sparsity:
            loss = loss + self.recipe.sparsity * scale_penalty(self.net)
        self._log("fit", predicted, labels, loss, self.names[:1])
        return loss

    def on_train_epoch_end(self) -> None:
        if not self.trainer.callback_metrics["fit/loss"].isfinite():
            raise InputError(
                f"training diverged in epoch {self.current_epoch}: the loss is not finite; use a lower "
                "training.learning_rate or a training.gradient_clip"
            )

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int, dataloader_idx: int = 0) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], _: int, dataloader_idx: int = 0) -> None:
        self._evaluate("test", batch)

    def configure_optimizers(self) -> dict:
        r = self.recipe
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=r.learning_rate,
            momentum=r.momentum,
            weight_decay=r.weight_decay,
            nesterov=r.nesterov and r.momentum > 0,
        )
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        warmup = round(steps * r.warmup_epochs / r.epochs) if r.epochs else 0
        schedule = CosineAnnealingLR(optimizer, max(1, steps - warmup))
        if warmup:
            rise = LinearLR(optimizer, start_factor=r.warmup_factor, total_iters=warmup)
            schedule = SequentialLR(optimizer, [rise, schedule], milestones=[warmup])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _evaluate(self, split: str, batch: tuple[Tensor, Tensor]) -> None:
        images, labels = self.read(batch)
        predicted, loss = self.judge(images, labels)
        self._log(split, predicted, labels, loss, self.names)

    def _log(self, split: str, predicted: Tensor, labels: Tensor, loss: Tensor, names: tuple[str, ...]) -> None:
        epoch = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(f"{split}/loss", loss, batch_size=self.count(labels), sync_dist=split != "fit", **epoch)
        for name in names:
            metric = self.scores[f"{split}_{name}"]
            metric(predicted, labels)
            self.log(f"{split}/{name}", metric, prog_bar=name == self.names[0], **epoch)
