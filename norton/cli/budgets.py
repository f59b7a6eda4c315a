"""Ranks and rates bought for a budget."""

import json
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

import norton
from norton.budget.choice import Choice
from norton.cli.images import calibration_images
from norton.cli.opening import Data
from norton.cli.settings import budget_options, calibration
from norton.cli.steps import pruning_with_data
from norton.common.files import write_json


def spend_budget(
    net: nn.Module, cfg: DictConfig, data: Data, *, path: Path | None = None, progress: bool = True
) -> tuple[DictConfig, Choice]:
    """The config with the ranks, and rates, that its budget buys for a network; and the choice.

    path: a file that keeps it, from which it is taken where it lies there.
    """
    if path is not None and path.exists():
        choice = Choice.from_dict(json.loads(path.read_text()))
    else:
        options = budget_options(cfg)
        if cfg.budget.joint:
            options["pruning"] = pruning_with_data(net, cfg, data)
        images = calibration_images(net, cfg, data)
        choice = norton.choose_ranks(net, images, **options, calibration=calibration(cfg), progress=progress)
        if path is not None:
            write_json(path, choice.as_dict())
    cfg = cfg.copy()
    cfg.rank = choice.ranks
    if cfg.budget.joint:
        cfg.compress_rate = choice.rates
    return cfg, choice
