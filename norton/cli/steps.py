"""The steps of the chain one by one, as configured: decompose, prune, calibrate, train, evaluate."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn

import norton
from norton.budget.choosing import check_feasible
from norton.calibration import Adapted, adapt_batchnorm_, reestimate_batchnorm_
from norton.cli.data_checks import check_classes, note_normalisation
from norton.cli.images import at_hand, calibration_images, images_for_batchnorm
from norton.cli.opening import Data, check_size, is_given, known, load_file
from norton.cli.settings import (
    budget_options,
    calibration,
    decompose_options,
    distills,
    is_joint,
    leaves_dense,
    make_loggers,
    plain,
    pruning_arguments,
    recipe,
    require,
    trainer_options,
)
from norton.common.errors import InputError, warn
from norton.decomposition.ranks import layer_rules
from norton.graph.copies import copied
from norton.pruning import Pruning, asks_for, check_prune
from norton.pruning.maps import NO_CLASS

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


def check_fit(net: nn.Module, cfg: DictConfig, step: str) -> None:
    """Raise InputError where ranks or rates do not fit the network, before anything is written."""
    require(cfg, step)
    if step == "decompose" and cfg.rank is None:
        check_feasible(net, **budget_options(cfg))
    elif step == "decompose" and not leaves_dense(cfg):
        how = decompose_options(cfg)
        layer_rules(net, plain(cfg.rank), how.skip, how.method)
    if step == "prune":
        rates = {"*": 0.0} if is_joint(cfg) and cfg.compress_rate is None else plain(cfg.compress_rate)
        pruning = pruning_arguments(cfg)
        check_prune(net, rates, pruning.criterion, options=pruning.options)


def check_images(net: nn.Module, cfg: DictConfig, data: Data, step: str) -> None:
    """Raise InputError, before any work, where the images that a step needs are missing, or do not suit the network."""
    c = cfg.calibration
    looks = step == "prune" and asks_for(plain(cfg.pruning.criterion))[0]
    fits = cfg.decomposition.objective == "outputs" if step == "decompose" else bool(cfg.pruning.compensate)
    if not looks and not fits and (c.batchnorm is False or (not is_given(cfg) and data is None)):
        return
    if not looks and c.folder is None and c.images is None:
        return
    if c.folder is not None:
        from norton.data.pictures import files_of_folder  # torchvision's transforms take a second to import

        files_of_folder(c.folder)
    try:
        data = known(data)
        if looks or c.folder is None:
            check_classes(net, data)
            check_size(net, data)
        note_normalisation(net, data)
    except InputError as error:
        if looks:
            raise
        raise InputError(f"{error}; or do without images: {_without_images(cfg)}") from None


def decompose(net: nn.Module, cfg: DictConfig, data: Data, *, progress: bool = True) -> nn.Module:
    """`norton.decompose` as configured, with calibration images where its objective asks for them."""
    require(cfg, "decompose")
    if leaves_dense(cfg):
        return copied(net)
    how = decompose_options(cfg)
    used: dict[str, Any] = {}
    if how.objective == "outputs":
        used = {"images": calibration_images(net, cfg, data), "calibration": calibration(cfg)}
    return norton.decompose(net, plain(cfg.rank), **how.arguments(), **used, progress=progress)


def output_errors(net: nn.Module, small: nn.Module, cfg: DictConfig, data: Data) -> dict[str, float]:
    """Of the layers decomposed for outputs, on the calibration images; empty for other objectives."""
    images = calibration_images(net, cfg, data) if cfg.decomposition.objective == "outputs" else None
    return {} if images is None else norton.decomposition.output_errors(net, small, images)


def prune(net: nn.Module, cfg: DictConfig, data: Data, *, progress: bool = True) -> nn.Module:
    """`norton.prune` as configured, with calibration images where the criterion or compensation asks for them.

    A criterion takes training images of `data`, with labels where it asks for them; compensation then takes the same.
    """
    check_fit(net, cfg, "prune")
    pruning, how = pruning_with_data(net, cfg, data), None
    if pruning.options.compensate:
        how = calibration(cfg)
        if pruning.images is None:
            pruning = replace(pruning, images=calibration_images(net, cfg, data))
    return norton.prune(net, plain(cfg.compress_rate), **pruning.arguments(), calibration=how, progress=progress)


def pruning_with_data(net: nn.Module, cfg: DictConfig, data: Data) -> Pruning:
    """The settings of the group `pruning`, with the images and labels that the criterion asks for."""
    pruning = pruning_arguments(cfg)
    needs_images, needs_labels = asks_for(pruning.criterion)
    if not needs_images:
        return pruning
    data = known(data)
    check_classes(net, data)
    images, labels = data.calibration_batch(at_hand(cfg, data))
    if data.ignore is not None:
        labels = labels.masked_fill(labels == data.ignore, NO_CLASS)
    return replace(pruning, images=images, labels=labels if needs_labels else None)


def calibrate_(small: nn.Module, dense: nn.Module, cfg: DictConfig, data: Data) -> Adapted | None:
    """Leave BatchNorm of a network that a step made, or mend it, as configured, in place; of random weights only on
    data that are named.

    dense: the network whose outputs count.  Returns what was decided, None where nothing was to be.
    """
    c = cfg.calibration
    if c.batchnorm is False or (not is_given(cfg) and data is None):
        return None
    if c.batchnorm == "auto":
        return adapt_batchnorm_(small, dense, *images_for_batchnorm(small, cfg, data), c.batch_size)
    try:
        fitting = calibration_images(small, cfg, data)
    except InputError as error:
        raise InputError(f"{error}; or do without images: {_without_images(cfg)}") from None
    if fitting is None:
        warn("calibration.batchnorm=true without calibration images: BatchNorm is left as it is")
    else:
        reestimate_batchnorm_(small, fitting, c.batch_size)
    return None


def _without_images(cfg: DictConfig) -> str:
    """The setting by which nobody asks for calibration images."""
    return "calibration.images=null" if cfg.calibration.folder is None else "leave calibration.folder out"


def fit(
    net: nn.Module,
    cfg: DictConfig,
    group: str,
    data: "ClassificationData",
    folder: Path,
    *,
    dense: nn.Module | None = None,
    **options: Any,
) -> nn.Module:
    """Train by the recipe of a config group; state and logs go to `folder`.

    dense: the network that teaches where the recipe distills and names no other.  options: more of
    `norton.training.fit`.
    """
    from norton.training import fit as train

    options = {"seed": cfg.seed, **trainer_options(cfg), **options}
    options.setdefault("loggers", make_loggers(cfg))
    if distills(cfg[group]):
        file = cfg[group].get("teacher")
        options["teacher"] = dense if file is None else load_file(file, cfg)
    return train(net, data, recipe(cfg[group], group), folder=folder, **options)


def evaluate(net: nn.Module, cfg: DictConfig, data: "ClassificationData", split: str = "test") -> dict[str, float]:
    """The scores of the data's task in percent, and the loss, on one device.

    A command that trains measures in float32, which its file is in and evaluate.py takes, whatever it trains in.
    """
    from norton.training import evaluate as measure

    check_classes(net, data)
    options = {**trainer_options(cfg), "devices": 1, "num_nodes": 1, "strategy": "auto"}
    if "training" in cfg:
        options["precision"] = "32-true"
    return measure(net, data, split=split, **options)
