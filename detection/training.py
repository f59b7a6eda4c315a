"""Training and scoring detectors with Lightning: the published schedules, the best epoch by AP."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, distributed, nn
from torch.optim.lr_scheduler import LambdaLR

from detection.coco import Target
from detection.data import DetectionData
from detection.scoring import TYPES, results_of, score
from norton.common.checks import check_number, check_whole_number
from norton.common.errors import InputError
from norton.data.splits import generator
from norton.graph.layers import FORMS, set_form_
from norton.training.fit import best_weights, trainer_of

PUBLISHED_BATCH = 16  # images that the learning rate is meant for: eight devices of two


@dataclass(frozen=True)
class DetectionRecipe:
    """How to train a detector.

    epochs: 0 trains nothing.  learning_rate: for 16 images a step, scaled by the images of all devices.  steps: epochs
    after which the rate falls to a tenth.  warmup_steps: of linear warm-up from `warmup_factor` times the rate.
    gradient_clip: largest norm of the gradient, 0 for any.  compute: how decomposed layers do, see `set_form_`.
    """

    epochs: int
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    steps: Sequence[int] = (16, 22)
    warmup_steps: int = 1000
    warmup_factor: float = 0.001
    gradient_clip: float = 0.0
    compute: str = "fast"

    def __post_init__(self) -> None:
        for name in ("epochs", "warmup_steps"):
            check_whole_number(f"training.{name}", getattr(self, name), 0)
        for name in ("learning_rate", "momentum", "weight_decay", "warmup_factor", "gradient_clip"):
            check_number(f"training.{name}", getattr(self, name), least=0)
        if self.compute not in FORMS:
            raise InputError(f"training.compute is {self.compute!r}; choose one of {', '.join(FORMS)}")
        if list(self.steps) != sorted(self.steps) or any(not isinstance(step, int) or step < 1 for step in self.steps):
            raise InputError(f"training.steps is {list(self.steps)!r}; it must be rising epochs of at least 1")

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate's factor in a step."""
        fallen = 0.1 ** sum(step >= epoch * steps_per_epoch for epoch in self.steps)
        if step >= self.warmup_steps:
            return fallen
        return fallen * (self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps)


class DetectorModule(lightning.LightningModule):
    """A detector with its losses; scores each validation and test by COCO's numbers."""

    def __init__(self, net: nn.Module, recipe: DetectionRecipe, data: DetectionData, seed: int = 0):
        super().__init__()
        self.net, self.recipe, self.data, self.seed = net, recipe, data, seed
        # In mixed precision torchvision would round boxes as it does what these say of them: to 4 pixels at 800.
        for layer in (net.rpn.head, net.roi_heads.box_predictor):
            layer.register_forward_hook(_in_float32)
        self.found: list[dict[str, Any]] = []
        self.seen: list[int] = []
        self.scores: dict[str, dict[str, float | None]] = {}

    def on_train_epoch_start(self) -> None:
        # Detectors draw the boxes that they learn from; a resumed training must draw as an uninterrupted one does.
        torch.manual_seed(generator(self.seed, self.current_epoch, self.global_rank).initial_seed())

    def training_step(self, batch: tuple[Sequence[Tensor], Sequence[Target]], _: int) -> Tensor:
        images, targets = batch
        losses = self.net(list(images), list(targets))
        loss = sum(losses.values())
        if not loss.isfinite():
            raise InputError(
                f"training diverged in epoch {self.current_epoch}: the loss is {loss.item()}; use a lower "
                "training.learning_rate or a training.gradient_clip"
            )
        self.log("fit/loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict({f"fit/{name}": value for name, value in losses.items()}, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple, _: int) -> None:
        self._find(batch)

    def test_step(self, batch: tuple, _: int) -> None:
        self._find(batch)

    def on_validation_epoch_end(self) -> None:
        self._score("val")

    def on_test_epoch_end(self) -> None:
        self._score("test")

    def configure_optimizers(self) -> dict:
        r, trainer = self.recipe, self.trainer
        scale = self.data.batch_size * trainer.world_size * trainer.accumulate_grad_batches / PUBLISHED_BATCH
        optimizer = torch.optim.SGD(
            [p for p in self.parameters() if p.requires_grad],
            lr=r.learning_rate * scale,
            momentum=r.momentum,
            weight_decay=r.weight_decay,
        )
        per_epoch = max(1, int(trainer.estimated_stepping_batches) // max(1, r.epochs))
        schedule = LambdaLR(optimizer, lambda step: r.rate(step, per_epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _find(self, batch: tuple) -> None:
        images, targets = batch
        for target, found in zip(targets, self.net(list(images)), strict=True):
            self.seen.append(int(target["image_id"]))
            self.found += results_of(self.seen[-1], found)

    def _score(self, split: str) -> None:
        # Not all images, where the Trainer's limit_val_batches says so.
        seen, self.results = (_of_all_devices(part, self.trainer.world_size) for part in (self.seen, self.found))
        self.seen, self.found = [], []
        annotations = self.data.images(split).coco
        self.scores = score(annotations, self.results, self.data.kind, image_ids=seen, sigmas=self.data.sigmas)
        for kind, numbers in self.scores.items():
            self.log(f"{split}/{kind}_AP", numbers["AP"] or 0.0, prog_bar=kind == "bbox")


def _in_float32(_: nn.Module, __: Any, outputs: Any) -> Any:
    """A hook: the outputs of a layer, tensors or lists of them, in float32."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    return type(outputs)(_in_float32(_, __, output) for output in outputs)


def _of_all_devices(found: list, devices: int) -> list:
    """What the processes have found together, each in its share of the images."""
    if devices == 1:  # also after a training on several, when the others are gone
        return found
    parts: list[list] = [[] for _ in range(devices)]
    distributed.all_gather_object(parts, found)
    return [one for part in parts for one in part]


def fit(
    net: nn.Module,
    data: DetectionData,
    recipe: DetectionRecipe,
    *,
    folder: str | Path,
    seed: int = 0,
    loggers: Sequence = (),
    **trainer_options,
) -> nn.Module:
    """A trained copy of a detector, in evaluation mode, with the weights of the epoch of the best AP on validation.

    The best AP is that of masks or keypoints where there are such.  folder: takes the state after every epoch; a
    training found there goes on where it was.  trainer_options: the Lightning Trainer's own.
    """
    if recipe.epochs == 0:
        return copy.deepcopy(net)
    lightning.seed_everything(seed, verbose=False)
    module = DetectorModule(set_form_(copy.deepcopy(net), recipe.compute), recipe, data, seed).train()
    # Faster, above all in bfloat16. Not the heads: the loss of torchvision's keypoints takes no other format.
    module.net.backbone.to(memory_format=torch.channels_last)
    state_dict = best_weights(
        module,
        data.train_dataloader(),
        data.val_dataloader(shared=True),
        monitor=f"val/{TYPES[data.kind][-1]}_AP",
        folder=folder,
        max_epochs=recipe.epochs,
        logger=list(loggers),
        gradient_clip_val=recipe.gradient_clip or None,
        use_distributed_sampler=False,
        **trainer_options,
    )
    trained = copy.deepcopy(net).eval()
    trained.load_state_dict(state_dict)
    return trained


def evaluate(
    net: nn.Module, data: DetectionData, *, split: str = "test", compute: str = "fast", **trainer_options
) -> tuple[dict[str, dict[str, float | None]], list[dict[str, Any]]]:
    """COCO's numbers per type, and the results behind them in COCO's format.  net: untouched."""
    module = DetectorModule(set_form_(copy.deepcopy(net), compute), DetectionRecipe(epochs=0), data)
    trainer = trainer_of(logger=False, enable_checkpointing=False, enable_model_summary=False, **trainer_options)
    if split == "test":
        trainer.test(module, data.test_dataloader(), verbose=False)
    elif split == "val":
        trainer.validate(module, data.val_dataloader(), verbose=False)
    else:
        raise InputError(f"split is {split!r}; choose one of test, val")
    return module.scores, module.results
