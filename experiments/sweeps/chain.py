"""The chain of a point: steps that other points begin with too are taken once, and kept in the sweep's folder."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn

import norton
from experiments.sweeps.folder import Sweep
from experiments.sweeps.identity import fingerprint, meaning
from experiments.sweeps.shared import made_once, opened
from norton.budget.choice import Choice
from norton.cli import opening, steps
from norton.cli.chain import USED, Chain, Stage
from norton.cli.data_checks import check_classes
from norton.cli.settings import has_budget
from norton.common.files import write_json

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback

    from norton.data.datamodule import ClassificationData

START = ("checkpoint", "model", "pretraining_seed", "data")  # settings of the network that is compressed


def first_steps(cfg: DictConfig) -> list[str]:
    """The steps whose result is kept for other points: training the dense network, and the first compression."""
    chain = list(cfg.steps)
    count = int(chain[0] == "train")
    return chain[: count + (chain[count : count + 1] in (["decompose"], ["prune"]))]


class PointChain:
    """`Chain` for one point of a sweep.

    say: is told what the point is at.  loggers: of its fine-tuning.
    """

    def __init__(
        self,
        cfg: DictConfig,
        data: "ClassificationData",
        sweep: Sweep,
        point: str,
        say: Callable[[str], None],
        loggers: Sequence[Any],
    ):
        self.chain, self.data, self.say, self.loggers = Chain(cfg, data, progress=False), data, say, loggers
        self.sweep, self.point = sweep, point
        self.trained: str | None = None  # the name of the dense network's file, if the chain trains one

    @property
    def cfg(self) -> DictConfig:
        """The point's settings; `spend` fills in ranks and rates."""
        return self.chain.cfg

    def start(self) -> Stage:
        """The network that the chain begins with.  Raises InputError for steps that do not fit it."""
        cfg = self.cfg
        fresh = cfg.copy()
        fresh.seed = cfg.pretraining_seed
        net, origin = opening.open_network(fresh, new_head=True)
        net, origin = opening.for_data(net, origin, self.data, cfg)
        check_classes(net, self.data)
        stage = self.chain.start(net, origin.get("lineage", []))
        self.chain.check(stage, cfg.steps)
        return stage

    def dense(self, start: Stage) -> Stage:
        """The network that is compressed: the start, or what one point has trained for all."""
        if "train" not in self.cfg.steps:
            return start
        path = self._shared("dense", (*START, "pretraining", "trainer"), "pt")
        with made_once(path, self.say) as missing:
            if missing:
                folder, line = self.sweep.training(path.stem), epoch_line(self.say, "train dense")
                trained = self.chain.take(start, "train", folder=folder, callbacks=[line], loggers=[])
                norton.save(trained.net, path, metrics={"data": self.data.name}, lineage=trained.lineage)
                shutil.rmtree(folder, ignore_errors=True)
        self.trained = path.name
        net, content = opened(path, self.cfg.model.arch)
        return self.chain.start(net, content["lineage"])

    def measures(self, dense: Stage) -> dict[str, Any]:
        """Accuracy, MACs and parameters of the network that is compressed, measured once."""
        path = self._shared("measures", (*START, "split", "trainer"), "json")
        with made_once(path, self.say) as missing:
            if missing:
                cost = norton.complexity(dense.net)
                write_json(path, {**self.accuracy(dense.net), "macs": cost.macs, "params": cost.params})
        return json.loads(path.read_text())

    def spend(self, dense: Stage) -> Choice | None:
        """The ranks and rates of the budget, chosen once for all points that have it; None where there is none."""
        if not has_budget(self.cfg):
            return None
        keys = (*START, "decomposition", "calibration", "budget", *["pruning"] * bool(self.cfg.budget.joint))
        path = self._shared("budget", keys, "json")
        with made_once(path, self.say):
            self.say("choose ranks")
            return self.chain.spend(dense, path)

    def first_compressed(self, dense: Stage) -> Stage:
        """The network after the first compression, computed once for all points that begin so."""
        step = next((step for step in first_steps(self.cfg) if step != "train"), None)
        if step is None:
            return dense
        path = self._shared(step, (*START, *USED[step]), "pt")
        with made_once(path, self.say) as missing:
            if missing:
                self.say(step)
                stage = self.chain.take(dense, step)
                norton.save(stage.net, path, metrics={"nmse_by_layer": dict(stage.errors)}, lineage=stage.lineage)
        net, content = opened(path, self.cfg.model.arch)
        errors = content["metrics"]["nmse_by_layer"]
        return replace(self.chain.start(net, content["lineage"]), errors=errors, teacher=dense.teacher)

    def take(self, stage: Stage, step: str, number: int) -> Stage:
        """A step that belongs to this point alone."""
        if step != "finetune":
            self.say(step)
            return self.chain.take(stage, step)
        self.data.splits  # noqa: B018  made by data.seed: all points see the same images, each seed in its own order
        seed, self.data.seed = self.data.seed, self.cfg.seed
        folder, line = self.sweep.training(self.point) / f"{number}", epoch_line(self.say, "fine-tune")
        try:
            return self.chain.take(stage, step, folder=folder, callbacks=[line], loggers=self.loggers)
        finally:
            self.data.seed = seed

    def accuracy(self, net: nn.Module) -> dict[str, float]:
        self.say(f"accuracy: {self.cfg.split}")
        return steps.evaluate(net, self.cfg, self.data, self.cfg.split)

    def _shared(self, kind: str, keys: Sequence[str], ending: str) -> Path:
        """The file of what these settings decide, of the point and of the dense network."""
        said = meaning(self.cfg)
        about = {key: said.get(key) for key in keys} | {"trained": self.trained}
        return self.sweep.shared(f"{kind}_{fingerprint(about)}.{ending}")


def epoch_line(say: Callable[[str], None], what: str) -> "Callback":
    """A Lightning callback that says the epoch and the best accuracy so far."""
    from lightning.pytorch.callbacks import Callback

    class Line(Callback):
        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            found = trainer.callback_metrics.get(f"val/{module.names[0]}")
            score = "" if found is None else f", validation {100 * float(found):.2f}%"
            say(f"{what}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{score}")

    return Line()
