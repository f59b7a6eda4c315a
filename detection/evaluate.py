"""Score a detector by COCO's numbers."""

from omegaconf import DictConfig

import norton
from detection.checkpoints import load_detector
from detection.reporting import KINDS, open_data, write_scores
from detection.training import evaluate
from norton.cli import program
from norton.cli.settings import check_settings, plain, trainer_options


@program.script("detection_evaluate")
def main(cfg: DictConfig) -> None:
    if cfg.checkpoint is None:
        raise norton.InputError("no checkpoint: give checkpoint=FILE, a detector")
    check_settings(cfg)
    net = load_detector(cfg.checkpoint, **plain(cfg.options))
    data = open_data(cfg, KINDS[net.arch], [cfg.split])
    if net.recipe["num_classes"] != data.num_classes:
        raise norton.InputError(
            f"the detector tells {net.recipe['num_classes']} classes apart, with the background, the data {data.name} "
            f"have {data.num_classes}; choose other data"
        )
    if (keypoints := net.recipe.get("num_keypoints", 17)) != data.num_keypoints and data.num_keypoints is not None:
        raise norton.InputError(
            f"the detector finds {keypoints} keypoints, the objects of {data.name} have {data.num_keypoints}; choose "
            "other data"
        )
    options = {**trainer_options(cfg), "devices": 1, "num_nodes": 1, "strategy": "auto"}
    scores, results = evaluate(net, data, split=cfg.split, **options)
    write_scores(program.open_folder(cfg), net, data, scores, results)


if __name__ == "__main__":
    main()
