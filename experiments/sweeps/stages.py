"""The steps of the chain as a point takes them, each saying what it is at."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import nn

import norton
from norton.cli import opening, steps
from norton.graph.layers import is_decomposed

USED = {
    "train": ("pretraining", "data", "pretraining_seed"),
    "decompose": ("rank", "decomposition", "calibration"),
    "prune": ("compress_rate", "pruning", "calibration"),
    "finetune": ("training", "data", "seed"),
}


@functools.lru_cache(maxsize=2)
def kept_data(settings: str):
    """The data of a point, kept for the next: making or reading them takes longer than many a point."""
    return opening.open_data(OmegaConf.create({"data": json.loads(settings)}))


def accuracy(net: nn.Module, cfg: DictConfig, data, say: Callable[[str], None]) -> dict[str, float]:
    say(f"accuracy: {cfg.split}")
    return steps.evaluate(net, cfg, data, cfg.split)


def compressed(
    net: nn.Module, step: str, cfg: DictConfig, data, say: Callable[[str], None]
) -> tuple[nn.Module, float | None]:
    """A network after one step of compression, and the NMSE of a decomposition."""
    say(step)
    if step == "decompose":
        small = steps.decompose(net, cfg, data, progress=False)
    else:
        small = steps.prune(net, cfg, data, progress=False)
    error = norton.nmse(net, small) if step == "decompose" and any(map(is_decomposed, small.modules())) else None
    steps.calibrate_(small, cfg, data)
    return small, error


def fine_tuned(
    net: nn.Module,
    dense: nn.Module,
    cfg: DictConfig,
    data,
    folder: Path,
    say: Callable[[str], None],
    loggers: list,
) -> nn.Module:
    """A network after fine-tuning on batches in the order of the point's seed; dense: from which it may learn."""
    data.splits  # noqa: B018  made by data.seed: all see the same images, augmented alike, each seed in its own order
    seed, data.seed = data.seed, cfg.seed
    try:
        line = epoch_line(say, "fine-tune")
        return steps.fit(net, cfg, "training", data, folder, dense=dense, callbacks=[line], loggers=loggers)
    finally:
        data.seed = seed


def epoch_line(say: Callable[[str], None], what: str):
    """A Lightning callback that says the epoch and the best accuracy so far."""
    from lightning.pytorch.callbacks import Callback

    class Line(Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            top1 = trainer.callback_metrics.get("val/top1")
            score = "" if top1 is None else f", validation {100 * float(top1):.2f}%"
            say(f"{what}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{score}")

    return Line()
