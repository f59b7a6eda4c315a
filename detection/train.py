"""Train a detector over a ResNet-50, dense or compressed, and score it."""

from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

import norton
from detection.checkpoints import load_detector, save_detector, start_from_
from detection.models import build_detector
from detection.reporting import KINDS, open_data, write_scores
from detection.training import DetectionRecipe, evaluate, fit
from norton.checkpoints.files import holds_detector, read
from norton.cli import program
from norton.cli.chain import lineage_record
from norton.cli.hints import as_typed
from norton.cli.settings import check_whole, plain, trainer_options
from norton.graph.plan import apply_plan_
from norton.models import dense_network
from norton.training import leave_devices


@program.script("detection_train", resumes=True)
def main(cfg: DictConfig) -> None:
    check_whole(cfg, "seed", 0)
    recipe = open_recipe(cfg)
    data = open_data(cfg, KINDS.get(cfg.detector.kind, "boxes"))
    net = open_detector(cfg, data)
    folder = program.open_folder(cfg)
    path = folder / "model.pt"
    if path.exists():  # of a run that was stopped while it was scored
        net = load_detector(path)
    else:
        loggers = [instantiate(logger) for logger in cfg.logger.values()] if cfg.logger else []
        options = {**trainer_options(cfg), "loggers": loggers}
        net = fit(net, data, recipe, folder=folder / "training", seed=cfg.seed, **options)
        save_detector(net, path)
    if leave_devices():
        # What detection.evaluate measures by default, whatever the training's precision and length were.
        kept = {name: cfg.trainer[name] for name in ("accelerator", "enable_progress_bar")}
        scores, results = evaluate(net, data, devices=1, **kept)
        claims = {kind: numbers["AP"] for kind, numbers in scores.items()}
        record = lineage_record("train", cfg, ("detector", "training", "data", "seed"))
        save_detector(net, path, metrics={**claims, "data": data.name}, lineage=[record])
        write_scores(folder, net, data, scores, results)
        where = f" detection_data@data={data.name}" * (data.name != "scenes")
        where += f" data.root={cfg.data.root}" * (cfg.data.root is not None)
        print(f"next: {as_typed('detection.evaluate')} checkpoint={path}{where}")


def open_recipe(cfg: DictConfig) -> DetectionRecipe:
    """The recipe of `training`."""
    try:
        return DetectionRecipe(**plain(cfg.training))
    except TypeError as error:
        raise norton.InputError(f"training: not a recipe for detectors ({error})") from None


def open_detector(cfg: DictConfig, data: Any) -> nn.Module:
    """A detector over the backbone of `checkpoint=`, or over one with random weights.

    Where `checkpoint=` is itself a detector, all of its weights that fit are taken.
    """
    torch.manual_seed(cfg.seed)
    told = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)}
    trained = None
    if cfg.checkpoint is None:
        backbone = norton.build("resnet_50", told["rank"] or 0, told["compress_rate"])
    elif holds_detector(read(cfg.checkpoint)):
        if any(value is not None for value in told.values()):
            raise norton.InputError(f"{cfg.checkpoint} is a detector, which has its ranks; give no rank, compress_rate")
        trained = load_detector(cfg.checkpoint)
        backbone = apply_plan_(dense_network("resnet_50"), trained.plan)
    else:
        backbone = norton.load(cfg.checkpoint, **told, strict=bool(cfg.strict))
    d = cfg.detector
    options = plain(d.options) or {}
    if "num_classes" in options:
        raise norton.InputError("detector.options has num_classes, which the data decide; leave it out")
    if data.num_keypoints is not None:
        options["num_keypoints"] = data.num_keypoints
    choices = {"trainable_layers": d.trainable_layers, "frozen_batchnorm": d.frozen_batchnorm}
    choices["categories"] = data.categories
    net = build_detector(d.kind, backbone, data.num_classes, **choices, **options)
    if trained is not None and (new := start_from_(net, trained)):
        parts = dict.fromkeys(".".join(key.split(".")[:2]) for key in new)
        print(f"not in {cfg.checkpoint}, hence from random weights: {', '.join(parts)}")
    return net


if __name__ == "__main__":
    main()
