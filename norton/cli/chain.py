"""The steps one after the other: who teaches whom, and what a checkpoint remembers of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

import norton
from norton.cli.opening import load_file
from norton.cli.settings import RECIPES, distills, has_budget, plain
from norton.common.errors import InputError
from norton.graph.plan import plan_of


def can_teach(net: nn.Module, lineage: Sequence[Mapping[str, Any]], *, opened: bool) -> bool:
    """Whether a network is a dense one that was trained, so that those made of it can learn from it.

    lineage: the records of the steps behind it.  opened: from a file, which published ones are without a lineage.  What
    was built narrow and trained is dense too, although it has a plan.
    """
    done = {record.get("step") for record in lineage}
    return not done & {"decompose", "prune"} and ("train" in done or (opened and not plan_of(net)))


def check_teachers(
    net: nn.Module, lineage: Sequence[Mapping[str, Any]], cfg: DictConfig, chain: Sequence[str], data
) -> None:
    """Raise InputError, before any work, where a step of a chain from `net` will have no teacher, or an unfit one."""
    found = False
    for number, step in enumerate(chain):
        done = [*lineage, *({"step": step} for step in chain[:number])]
        found = found or can_teach(net, done, opened=cfg.checkpoint is not None)
        group = RECIPES.get(step)
        if group is None or not distills(cfg[group]):
            continue
        if (file := cfg[group].get("teacher")) is not None:
            if (classes := load_file(file, cfg).num_classes) != data.num_classes:
                raise InputError(
                    f"{group}.teacher={file} tells {classes} classes apart, the data {data.name} have "
                    f"{data.num_classes}; choose another"
                )
        elif not found:
            raise InputError(
                f"{group}.distill=true, and there is no dense network to learn from before the step {step}: what the "
                f"chain starts from is compressed or untrained; name one with {group}.teacher=FILE"
            )


def lineage_record(step: str, cfg: DictConfig, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a checkpoint remembers of the step that made it; teacher: that it learned from, if any."""
    settings = {key: plain(cfg[key]) for key in keys}
    if has_budget(cfg) and step in ("decompose", "prune"):
        settings["budget"] = plain(cfg.budget)
    for group in set(keys) & set(RECIPES.values()):
        if distills(cfg[group]):
            settings["teacher"] = cfg[group].get("teacher") or "the dense network"
    return {"step": step, **settings, "norton": norton.__version__, "torch": str(torch.__version__)}
