"""Classification as a LightningModule: loss, metrics, and the published optimiser and schedule."""

from dataclasses import dataclass
from typing import Literal

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchmetrics.classification import MulticlassAccuracy

from norton.common.checks import check_boolean, check_number, check_whole_number
from norton.common.errors import InputError
from norton.graph.layers import FORMS, Form
from norton.training.distillation import Distillation


@dataclass(frozen=True)
class Recipe:
    """How to train; the defaults are those of the commands, a short fine-tuning (`configs/training/clutter.yaml`).

    epochs: 0 trains nothing.  learning_rate: after warm-up, before cosine annealing to zero.  warmup_epochs: of linear
    warm-up from `warmup_factor` times the learning rate.  gradient_clip: largest norm of the gradient, 0 for any;
    terms of a decomposed filter that nearly cancel have large gradients.  sparsity: times the sum of |γ| over all
    BatchNorms is added to the loss, network slimming's penalty (Liu et al. 2017, equation 1), for the criterion
    `bn_scale`.  distill: learn from a teacher too; with w = distill_weight and T = temperature the cross-entropy counts
    1 - w, and w · T² KL(softmax(teacher / T) ‖ softmax(student / T)) is added (Hinton et al. 2015).  distill_features:
    times the relative error of what the last linear layer reads is added too, see `Distillation`; 0 for none.
    select_on: `validation` keeps the epoch with the best validation accuracy; `test` is the published protocol, which
    picks it on the test set and so reports too much.  compute: how decomposed layers do while training, see
    `set_form_`.
    """

    epochs: int = 4
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    label_smoothing: float = 0.0
    gradient_clip: float = 1.0
    warmup_epochs: float = 0.3
    warmup_factor: float = 0.01
    sparsity: float = 0.0
    distill: bool = False
    temperature: float = 4.0
    distill_weight: float = 0.9
    distill_features: float = 0.0
    select_on: str = "validation"
    compute: Form | Literal["fast"] = "fast"

    def __post_init__(self) -> None:
        check_whole_number("training.epochs", self.epochs, 0)
        for field in (
            "warmup_epochs",
            "learning_rate",
            "momentum",
            "weight_decay",
            "gradient_clip",
            "label_smoothing",
            "warmup_factor",
            "sparsity",
            "temperature",
            "distill_weight",
            "distill_features",
        ):
            check_number(f"training.{field}", getattr(self, field), least=0)
        if self.select_on not in ("validation", "test"):
            raise InputError(f"training.select_on is {self.select_on!r}; choose one of validation, test")
        if self.compute not in FORMS:
            raise InputError(f"training.compute is {self.compute!r}; choose one of {', '.join(FORMS)}")
        if not 0 < self.warmup_factor <= 1:
            raise InputError(f"training.warmup_factor is {self.warmup_factor}; it must be above 0 and at most 1")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"training.label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        check_boolean("training.distill", self.distill)
        if not self.temperature:
            raise InputError("training.temperature is 0; it must be above 0, and 1 softens nothing")
        if self.distill_weight > 1:
            raise InputError(f"training.distill_weight is {self.distill_weight}; it must be in [0, 1]")


def scale_penalty(net: nn.Module) -> Tensor:
    """The sum of |γ| over all BatchNorms of a network.  Raises InputError where there are none to be thinned out."""
    norms = [layer for layer in nn.Module.modules(net) if isinstance(layer, _BatchNorm) and layer.affine]
    if not norms:
        raise InputError("training.sparsity thins out the scales of BatchNorm, and this network has none; set it to 0")
    return sum(layer.weight.abs().sum() for layer in norms)


class Classifier(lightning.LightningModule):
    """A network with cross-entropy; logs loss, top-1 and top-5 accuracy (percent) of each split.

    distillation: what a teacher adds to the loss of training, see `Recipe`.
    """

    def __init__(self, net: nn.Module, recipe: Recipe, num_classes: int, distillation: Distillation | None = None):
        super().__init__()
        self.net, self.recipe, self.distillation = net, recipe, distillation
        top5 = min(5, num_classes)
        self.accuracy = nn.ModuleDict(
            {
                f"{split}_{name}": MulticlassAccuracy(num_classes, top_k=k, average="micro")
                for split in ("fit", "val", "test")
                for name, k in (("top1", 1), ("top5", top5))
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        images, labels = batch
        teaching = self.distillation
        logits, taught = (self(images), None) if teaching is None else teaching(self.net, images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        if teaching is not None:
            loss = (1 - teaching.weight) * loss + taught
        if self.recipe.sparsity:
            loss = loss + self.recipe.sparsity * scale_penalty(self.net)
        self._log("fit", logits, labels, loss, names=("top1",))
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
        images, labels = batch
        logits = self(images)
        self._log(split, logits, labels, F.cross_entropy(logits, labels), names=("top1", "top5"))

    def _log(self, split: str, logits: Tensor, labels: Tensor, loss: Tensor, names: tuple[str, ...]) -> None:
        epoch = {"on_step": False, "on_epoch": True, "add_dataloader_idx": False}
        self.log(f"{split}/loss", loss, batch_size=len(labels), sync_dist=split != "fit", **epoch)
        for name in names:
            metric = self.accuracy[f"{split}_{name}"]
            metric(logits, labels)
            self.log(f"{split}/{name}", metric, prog_bar=name == "top1", **epoch)
