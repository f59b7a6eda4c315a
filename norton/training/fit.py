"""Fit a network to data, keep the best epoch, survive being killed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader

from norton.checkpoints.about_data import classes_of, difference, other_normalisation, some
from norton.common.errors import InputError, warn
from norton.data.datamodule import ClassificationData
from norton.graph.copies import copied
from norton.graph.layers import Form, set_form_
from norton.training.classifier import Classifier
from norton.training.distillation import Distillation
from norton.training.history import HISTORY, History
from norton.training.loaders import Data, as_data
from norton.training.recipe import Recipe
from norton.training.remembering import KnownData, remember_data_
from norton.training.segmenter import Segmenter
from norton.training.task import Task

LAST = "last.ckpt"
IMAGES = 256  # calibration images to begin a map between features with, see `Distillation`


def fit(
    net: nn.Module,
    data: Data,
    recipe: Recipe,
    *,
    folder: str | Path,
    teacher: nn.Module | None = None,
    seed: int = 0,
    loggers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    **trainer_options: Any,
) -> nn.Module:
    """A trained copy of `net`, in evaluation mode, with the weights of the best epoch (see `Recipe.select_on`).

    data: of `norton.data`, or (train, val) or (train, val, test), loaders of batches (images, labels).  folder: takes
    the training state after every epoch, and the scores of each (`epochs.json`); with `resume`, a training found there
    goes on where it was, with the same batches an uninterrupted one would have seen, unless own loaders shuffle
    otherwise.  teacher: a trained network that this one learns from, where the recipe distills; it is not changed.
    trainer_options: the Lightning Trainer's own.  Where no epoch is better than `net` itself, a warning says so, and
    `net`'s weights are kept, unless the recipe has a sparsity.  The copy remembers the data, see
    `norton.checkpoints.about_data`.

    Raises InputError at the end of an epoch whose loss is not finite, and for a teacher that is missing, that the
    recipe has no use for, or that does not fit, see `Distillation`.
    """
    if recipe.epochs == 0:
        return copied(net)
    data = as_data(data, net)
    distillation = distillation_of(net, teacher, recipe, data)
    lightning.seed_everything(seed, verbose=False)
    # A loaded network is in evaluation mode, and Lightning would train it in that.
    student = set_form_(copied(net), recipe.compute)
    module = task_of(student, recipe, data, distillation).train()
    select_on = data.test_dataloader() if recipe.select_on == "test" else data.val_dataloader()
    state_dict = best_weights(
        module,
        data.train_dataloader(),
        select_on,
        monitor=f"val/{module.names[0]}",
        folder=folder,
        callbacks=callbacks,
        resume=resume,
        keep_start=not recipe.sparsity,  # which is to thin out scales, at the price of accuracy
        max_epochs=recipe.epochs,
        logger=list(loggers),
        gradient_clip_val=recipe.gradient_clip or None,
        **trainer_options,
    )
    trained = copied(net).eval()
    if state_dict is not None:
        trained.load_state_dict(state_dict)
    return remember_data_(trained, data)


def task_of(net: nn.Module, recipe: Recipe, data: KnownData, distillation: Distillation | None = None) -> Task:
    """The module that trains and judges a network by what the labels of the data are for."""
    if data.task == "segmentation":
        return Segmenter(net, recipe, data.num_classes, data.ignore, distillation)
    return Classifier(net, recipe, data.num_classes, distillation)


def distillation_of(net: nn.Module, teacher: nn.Module | None, recipe: Recipe, data: KnownData) -> Distillation | None:
    """What a teacher adds to the loss of a recipe; None where it does not distill."""
    if not recipe.distill:
        if teacher is not None:
            raise InputError("there is a teacher, and training.distill is false; set it to true, or leave teacher= out")
        return None
    check_features(recipe.distill_features, data)
    if teacher is None:
        raise InputError("training.distill is true, and there is no teacher; give a trained network as teacher=")
    count = IMAGES if recipe.distill_features else 1
    if isinstance(data, ClassificationData):
        count = min(count, len(data.splits.calibration))
    return Distillation(
        net,
        teacher,
        data.calibration_images(count),
        temperature=recipe.temperature,
        weight=recipe.distill_weight,
        features=recipe.distill_features,
        pixels=data.task == "segmentation",
    )


def check_features(weight: float, data: KnownData) -> None:
    """Raise InputError where features are to be learned, for data whose labels are not classes of images."""
    if weight and data.task != "classification":
        raise InputError(
            "training.distill_features is about what the last linear layer of a classifier reads, and the data "
            f"{data.name} are for {data.task}, where the soft targets of training.distill alone teach; set it to 0"
        )


class StartScore(Callback):
    """The score of the network that a training begins with, which a resumed training remembers."""

    def __init__(self, monitor: str):
        self.monitor = monitor
        self.score: float | None = None

    def on_sanity_check_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.score is None:  # else this is a training that goes on
            self.score = float(trainer.callback_metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score = state_dict["score"]


def best_weights(
    module: lightning.LightningModule,
    train: DataLoader,
    select_on: DataLoader,
    *,
    monitor: str,
    folder: str | Path,
    callbacks: Sequence[Callback] = (),
    resume: bool = True,
    keep_start: bool = False,
    **trainer_options: Any,
) -> dict[str, Tensor] | None:
    """Train a module and give the weights that its `net` had in the epoch with the largest `monitor`.

    folder: takes the training state after every epoch, and the scores (`epochs.json`); with `resume`, a training found
    there goes on where it was.
    keep_start: compare with the start too; None, with a warning, where no epoch is better.
    """
    folder = Path(folder)
    if own := {"num_sanity_val_steps", "default_root_dir", "enable_model_summary"} & set(trainer_options):
        raise InputError(f"trainer.{min(own)} is what a training sets itself; leave it out")
    best = ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False)
    # One of its own: `save_last` of the other would be written only when an epoch is the best so far.
    last = ModelCheckpoint(folder, filename=Path(LAST).stem, enable_version_counter=False)
    # tqdm, because Lightning's default shows nothing where the output is not a terminal.
    bar = [TQDMProgressBar(refresh_rate=10)] if trainer_options.get("enable_progress_bar", True) else []
    start = StartScore(monitor)
    trainer = trainer_of(
        callbacks=[best, last, start, History(folder / HISTORY), *bar, *callbacks],
        num_sanity_val_steps=-1 if keep_start else 0,  # all of the validation, before the first epoch
        default_root_dir=folder,
        enable_model_summary=False,
        **trainer_options,
    )
    if not trainer.limit_val_batches:
        raise InputError("trainer.limit_val_batches is 0; the best epoch is picked on validation images")
    state = folder / LAST
    trainer.fit(module, train, select_on, ckpt_path=state if resume and state.exists() else None, weights_only=True)
    if start.score is not None and best.best_model_score <= start.score:
        if rank_zero_only.rank == 0:
            warn(
                f"training: no epoch was better than the network it began with ({monitor} {best.best_model_score:.4f}, "
                f"before {start.score:.4f}), whose weights are kept; use a lower training.learning_rate, or more epochs"
            )
        return None
    state_dict = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    return {key.removeprefix("net."): value for key, value in state_dict.items() if key.startswith("net.")}


def evaluate(
    net: nn.Module,
    data: Data,
    *,
    split: str = "test",
    compute: Form | Literal["fast"] = "fast",
    **trainer_options: Any,
) -> dict[str, float]:
    """The scores of the data's task on one split, in percent, and the loss.  net: untouched.

    data: as for `fit`, or one loader alone.  {"top1", "top5", "loss"}; of segmentation {"miou", "pixel_accuracy",
    "loss"}, see `Segmenter`.  Warns of images that are normalised otherwise than those that the network remembers.

    Raises InputError for data of other classes than the network's, or of the same in another order.
    """
    if split not in ("test", "val"):
        raise InputError(f"split is {split!r}; choose one of test, val")
    data = as_data(data, net)
    check_same(net, data)
    module = task_of(set_form_(copied(net), compute), Recipe(epochs=0), data)
    trainer = trainer_of(logger=False, enable_checkpointing=False, enable_model_summary=False, **trainer_options)
    if split == "test":
        (result,) = trainer.test(module, data.test_dataloader(), verbose=False)
    else:
        (result,) = trainer.validate(module, data.val_dataloader(), verbose=False)
    measured = {key.split("/")[1]: value for key, value in result.items()}
    # torchmetrics computes in float32, where 96.35 is 96.35000228881836.
    scores = {name: round(100 * measured[name], 4) for name in module.names}
    return {**scores, "loss": measured["loss"]}


def check_same(net: nn.Module, data: KnownData) -> None:
    """Raise InputError where data have other classes than a network remembers; warn of another normalisation."""
    own = classes_of(net) or ()
    if differs := difference(own, data.classes or ()):
        raise InputError(
            f"the network was trained on the classes {some(own)}; the data {data.name} {differs}; "
            "give others, or train a network for them with `fit`"
        )
    if other := other_normalisation(net, data.normalisation):
        warn(f"the images are {other}, so it may do worse on them than it can")


def leave_devices() -> bool:
    """End what the devices of a training do together; whether this process is the one that goes on."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()  # or whoever measures alone would wait for the others' shares
    return rank_zero_only.rank == 0


def trainer_of(**options: Any) -> lightning.Trainer:
    try:
        return lightning.Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise InputError(f"trainer: {error}") from None
