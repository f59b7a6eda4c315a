"""What a point of a sweep means: the settings that decide its result, its name, and whether they can be run."""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import norton
from norton.cli.settings import (
    RECIPES,
    check_settings,
    check_whole,
    has_budget,
    plain,
    rates_text,
    require,
    setting_text,
)
from norton.pruning import describe
from norton.pruning.allocation import read_rates

BUDGET = ("budget.macs", "budget.params", "budget.joint")
IN_LABEL = (
    "rank",
    "compress_rate",
    "pruning",
    "pruning.criterion",
    "seed",
    "rank_ratio",
    *BUDGET,
)  # swept settings it shows anyway
STEPS = ("train", "decompose", "prune", "finetune")
# What cannot change a result: where it is written, what is shown and logged, where things are read and computed.
NO_MEANING = ("out", "name", "shared", "extend", "logger", "strict")
NO_MEANING_OF_DATA = ("num_workers", "download", "memory")
OWN_DATA = ("auto", "folder", "module")  # of which a root says what they are; others are the same anywhere
NO_MEANING_WITHOUT_DISTILLATION = ("distill", "temperature", "distill_weight", "distill_features", "teacher")
NO_MEANING_OF_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar")


def stated(cfg: DictConfig) -> dict[str, Any]:
    """The settings that could decide a result, as plain data; a checkpoint counts by its content, rates as numbers."""
    said = {key: plain(value) for key, value in cfg.items() if key not in NO_MEANING}
    without = (*NO_MEANING_OF_DATA, *["root"] * (said["data"]["name"] not in OWN_DATA))
    said["data"] = {key: value for key, value in said["data"].items() if key not in without}
    said["trainer"] = {key: value for key, value in said["trainer"].items() if key not in NO_MEANING_OF_TRAINER}
    if cfg.checkpoint is not None:
        said["checkpoint"] = digest(str(cfg.checkpoint))
    if cfg.compress_rate is not None:
        said["compress_rate"] = read_rates(said["compress_rate"])
    return said


def meaning(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide a point's result: of those stated, the ones that something uses."""
    said = stated(cfg)
    if not has_budget(cfg):
        del said["budget"]
    for group in RECIPES.values():
        if not said[group].get("distill"):
            said[group] = {k: v for k, v in said[group].items() if k not in NO_MEANING_WITHOUT_DISTILLATION}
        elif said[group].get("teacher") is not None:
            said[group]["teacher"] = digest(said[group]["teacher"])
    if cfg.latency_batch is None:
        del said["latency"], said["repeats"]
    if said["training"].get("epochs") == 0:
        said["training"] = {"epochs": 0}
    if removes_nothing(said):
        del said["pruning"]
    about = {
        "train": ("pretraining",),
        "decompose": ("decomposition", "rank"),
        "prune": ("pruning", "compress_rate"),
        "finetune": ("training",),
    }
    if cfg.checkpoint is not None and "train" not in said["steps"]:
        del said["pretraining_seed"]  # else it decides the random weights to start from
    unused = {key for step, keys in about.items() if step not in said["steps"] for key in keys}
    return {key: value for key, value in said.items() if key not in unused}


def removes_nothing(said: Mapping[str, Any]) -> bool:
    """Whether all rates are 0, so that no criterion decides anything; rounding may still remove filters."""
    rates = said["compress_rate"]
    each = rates.values() if isinstance(rates, Mapping) else rates if isinstance(rates, list) else [rates]
    named = said["pruning"]["criterion"] == "index"  # its filters go whatever the rates
    return rates is not None and not any(each) and not named and said["pruning"]["round_to"] == 1


def fingerprint(about: Mapping[str, Any]) -> str:
    """A short name for plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def digest(path: str) -> str:
    """The SHA-256 of a checkpoint.  Raises InputError where there is none."""
    if not Path(path).is_file():
        raise norton.InputError(f"no checkpoint at {path}; give the path of a file written by norton.save or published")
    status = os.stat(path)
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that a point would stumble over."""
    check_settings(cfg)
    check_whole(cfg, "pretraining_seed", 0)
    if cfg.latency_batch is not None:
        check_whole(cfg, "repeats", 1)
    if not cfg.steps or (unknown := [step for step in cfg.steps if step not in STEPS]):
        what = f"unknown step {unknown[0]!r}" if cfg.steps else "no steps"
        raise norton.InputError(f"{what}; give e.g. steps=[decompose,prune,finetune] out of {', '.join(STEPS)}")
    for step in cfg.steps:
        require(cfg, step)
    if "train" in cfg.steps[1:]:
        raise norton.InputError("steps: train comes first; what is trained after a compression is `finetune`")
    if cfg.checkpoint is None and cfg.model.arch is None:
        raise norton.InputError("no network: give checkpoint=FILE, or model=NAME with steps=[train,decompose,...]")
    if cfg.trainer.devices not in ("auto", 1) or cfg.trainer.num_nodes != 1:
        raise norton.InputError(
            "a point of a sweep computes on one device; use several at once with hydra/launcher=joblib or "
            "submitit_slurm, or train a single network on them with experiments.pipeline"
        )


def short_label(cfg: DictConfig) -> str:
    """A point in a few words."""
    words = []
    if "decompose" in cfg.steps:
        words.append(setting_text(cfg))
    if "prune" in cfg.steps:
        words.append(f"{describe(cfg.pruning)} {rates_text(cfg)}")
    return ", ".join([*words, f"seed {cfg.seed}"])
