"""The chain: steps one after the other, each on what the one before left; who teaches whom; what files remember."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

import norton
from norton.budget.choice import Choice
from norton.calibration import Adapted
from norton.checkpoints.files import read
from norton.cli import program, steps
from norton.cli.budgets import spend_budget
from norton.cli.opening import FRESH_HEAD, Data, data_for, inherited, is_given, load_file, open_network
from norton.cli.settings import RECIPES, check_settings, distills, has_budget, plain
from norton.common.errors import InputError
from norton.graph.layers import is_decomposed
from norton.graph.plan import plan_of

Record = Mapping[str, Any]
TRAINED = ("train", "finetune", FRESH_HEAD)  # what decides whether a classifier is trained
# The settings that a step goes by.
USED = {
    "train": ("pretraining", "data", "seed"),
    "decompose": ("rank", "decomposition", "calibration"),
    "prune": ("compress_rate", "pruning", "calibration"),
    "finetune": ("training", "data", "seed"),
}


@dataclass(frozen=True)
class Stage:
    """A network on its way through the chain.

    lineage: a record per step behind it.  errors: layer → NMSE, of the last step that decomposed.  teacher: the last
    dense network before it that was trained, from which those made of it can learn; None where there is none.
    """

    net: nn.Module
    lineage: Sequence[Record] = ()
    errors: Mapping[str, float] = field(default_factory=dict)
    teacher: nn.Module | None = None

    @property
    def nmse(self) -> float | None:
        """The mean over the layers that were decomposed; None where none was."""
        return fmean(self.errors.values()) if self.errors else None


class Chain:
    """The steps of a config: train, decompose, prune, finetune, each from one stage to the next.

    cfg: its settings, in which `spend` fills in ranks and rates.  data: for all steps; None where nothing says which:
    a step that needs images then raises InputError.  progress: show bars.
    """

    def __init__(self, cfg: DictConfig, data: Data, *, progress: bool = True):
        self.cfg, self.data, self.progress = cfg, data, progress

    def start(self, net: nn.Module, lineage: Sequence[Record] = ()) -> Stage:
        """The stage that the chain begins with; lineage: the records of the network's checkpoint."""
        return self._stage(net, lineage, Stage(net))

    def check(self, start: Stage, chain: Sequence[str]) -> None:
        """Raise InputError, before any work, for steps that do not fit the network or lack what they need."""
        for step in chain:
            steps.check_fit(start.net, self.cfg, step)
            if step not in RECIPES:
                steps.check_images(start.net, self.cfg, self.data, step)
        check_teachers(start.net, start.lineage, self.cfg, chain, self.data)

    def spend(self, stage: Stage, path: Path | None = None) -> Choice:
        """Choose the ranks, and rates, that the budget buys, for the steps to come; path: see `spend_budget`."""
        self.cfg, choice = spend_budget(stage.net, self.cfg, self.data, path=path, progress=self.progress)
        return choice

    def take(self, stage: Stage, step: str, *, folder: Path | None = None, **training: Any) -> Stage:
        """One step.  folder: for the state of a training; training: more of `norton.training.fit`."""
        record = lineage_record(step, self.cfg)
        if step in RECIPES:
            assert folder is not None and self.data is not None
            training.setdefault("seed", self.cfg[_seed(step, self.cfg)])
            net = steps.fit(stage.net, self.cfg, RECIPES[step], self.data, folder, dense=stage.teacher, **training)
            errors = stage.errors
        else:
            net, errors, adapted = self._compressed(stage, step)
            if adapted is not None:
                record["batchnorm"] = {"choice": adapted.choice, "output errors": adapted.errors}
        self._remember_(net)
        return self._stage(net.eval(), [*stage.lineage, record], stage, errors)

    def _remember_(self, net: nn.Module) -> None:
        """Let a network remember the data of a step, in place, where it knows of none; a training says so itself."""
        if self.data is None:
            return
        if self.data.opened:
            from norton.training import remember_if_new_  # Lightning takes seconds to import; who opened data has it

            remember_if_new_(net, self.data)
        elif getattr(net, "normalisation", None) is None and self._says_normalisation():
            net.normalisation = self.data.told_normalisation

    def _says_normalisation(self) -> bool:
        return any(self.cfg.data.get(key) is not None for key in ("mean", "std"))

    def opened(self, path: Path, before: Stage) -> Stage:
        """The stage after a step whose network lies in a file; before: the stage that it was made from."""
        return self._stage(load_file(path, self.cfg), read(path)["lineage"], before)

    def _compressed(self, stage: Stage, step: str) -> tuple[nn.Module, Mapping[str, float], Adapted | None]:
        errors = stage.errors
        if step == "decompose":
            small = steps.decompose(stage.net, self.cfg, self.data, progress=self.progress)
            if _decomposed(small) - _decomposed(stage.net):
                errors = norton.layer_nmse(stage.net, small)
        else:
            small = steps.prune(stage.net, self.cfg, self.data, progress=self.progress)
        adapted = steps.calibrate_(small, stage.teacher or stage.net, self.cfg, self.data)
        if adapted is not None and self.progress:
            print(adapted)
        return small, errors, adapted

    def _stage(
        self, net: nn.Module, lineage: Sequence[Record], before: Stage, errors: Mapping[str, float] | None = None
    ) -> Stage:
        able = can_teach(net, lineage, opened=is_given(self.cfg))
        return Stage(net, list(lineage), before.errors if errors is None else errors, net if able else before.teacher)


def begin(cfg: DictConfig, step: str) -> tuple[Chain, Stage, dict[str, Any]]:
    """What a command of one step begins with: chain and first stage, both checked, and the metrics of a checkpoint.

    Raises InputError, before any work, for settings that do not fit the network, the data or the output folder.
    """
    check_settings(cfg)
    net, origin = open_network(cfg, new_head=True)
    data = data_for(net, origin, cfg)
    program.check_folder(cfg)  # only now: the data that are chosen belong to its config
    chain = Chain(cfg, data)
    start = chain.start(net, origin["lineage"])
    chain.check(start, [step])
    return chain, start, inherited(origin)


def _decomposed(net: nn.Module) -> set[str]:
    return {name for name, layer in net.named_modules() if is_decomposed(layer)}


def can_teach(net: nn.Module, lineage: Sequence[Record], *, opened: bool) -> bool:
    """Whether a network is a dense one that was trained, so that those made of it can learn from it.

    lineage: the records of the steps behind it.  opened: from a file, which published ones are without a lineage.  What
    was built narrow and trained is dense too, although it has a plan.
    """
    last = next((step for record in reversed(lineage) if (step := record.get("step")) in TRAINED), None)
    if last == FRESH_HEAD:
        return False
    done = {record.get("step") for record in lineage}
    return not done & {"decompose", "prune"} and ("train" in done or (opened and not plan_of(net)))


def check_teachers(
    net: nn.Module, lineage: Sequence[Record], cfg: DictConfig, chain: Sequence[str], data: Data
) -> None:
    """Raise InputError, before any work, where a step of a chain from `net` will have no teacher, or an unfit one."""
    from norton.training.fit import check_features  # Lightning takes seconds to import

    found = False
    for number, step in enumerate(chain):
        done = [*lineage, *({"step": step} for step in chain[:number])]
        found = found or can_teach(net, done, opened=is_given(cfg))
        group = RECIPES.get(step)
        if group is None or not distills(cfg[group]):
            continue
        if data is not None:
            check_features(cfg[group].get("distill_features"), data)
        if (file := cfg[group].get("teacher")) is not None:
            classes = load_file(file, cfg).num_classes
            if data is not None and classes != data.num_classes:
                raise InputError(
                    f"{group}.teacher={file} tells {classes} classes apart, the data {data.name} have "
                    f"{data.num_classes}; choose another"
                )
        elif not found:
            raise InputError(
                f"{group}.distill=true, and there is no dense network to learn from before the step {step}: what the "
                f"chain starts from is compressed or untrained; name one with {group}.teacher=FILE"
            )


def lineage_record(step: str, cfg: DictConfig, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """What a checkpoint remembers of the step that made it: the settings `keys`, those of `USED` if None.

    teacher: that it learned from, if any.
    """
    keys = [_seed(step, cfg) if key == "seed" else key for key in USED[step]] if keys is None else keys
    settings = {key: plain(cfg[key]) for key in keys}
    if "data" in settings:  # whose folder the network itself remembers, from which a user can take it out
        settings["data"].pop("root", None)
    if has_budget(cfg) and step in ("decompose", "prune"):
        settings["budget"] = plain(cfg.budget)
    for group in set(keys) & set(RECIPES.values()):
        if distills(cfg[group]):
            settings["teacher"] = cfg[group].get("teacher") or "the dense network"
    return {"step": step, **settings, "norton": norton.__version__, "torch": str(torch.__version__)}


def _seed(step: str, cfg: DictConfig) -> str:
    """The seed of a step: dense networks of a sweep have one of their own, which its points share."""
    return "pretraining_seed" if step == "train" and "pretraining_seed" in cfg else "seed"
