"""A network on its way into use, from float32 to INT8: accuracy, file size, latency and memory beside the dense one."""

from omegaconf import DictConfig

import norton
from experiments.deployment.measuring import CPU, measure, told
from experiments.deployment.networks import calibration_images, deploy, noise, open_data, open_networks
from experiments.deployment.results import picture, table_row, verdicts
from experiments.deployment.variants import Preparation
from norton.cli import program, tables
from norton.cli.opening import score_of
from norton.cli.settings import check_whole, plain
from norton.common.checks import check_boolean
from norton.common.files import write_json
from norton.measure.machine import describe_machine
from norton.models import NETWORKS
from norton.models.foreign import is_path


@program.script("deploy")
def main(cfg: DictConfig) -> None:
    check_settings(cfg)
    nets, about = open_networks(cfg)
    data, notes = open_data(cfg, nets, about)
    images, noted = calibration_images(cfg, nets, data, about)
    program.check_folder(cfg)  # only now: the data that are chosen belong to its config
    example = noise(nets["network"].net, max(cfg.batch_sizes), cfg.seed)
    deployed = {role: deploy(cfg, role, given, example) for role, given in nets.items()}
    folder = program.open_folder(cfg)

    variants = []
    for role, given in nets.items():
        variants += Preparation(cfg, role, given, deployed[role], example, images, folder, notes).variants()
    rows = measure(variants, images, cfg, data)

    arch = nets["network"].net.arch
    title = f"{arch}, {describe_machine(CPU)}"
    write_json(folder / "metrics.json", {"arch": arch, **told(data), "notes": notes + noted, "rows": rows})
    score = score_of(data)
    shown = [table_row(row, score) for row in rows]
    tables.write_table(folder / "table.md", shown)
    picture(folder / "picture.png", rows, title, score)
    tables.print_table(shown, title)
    for line in (*verdicts(rows), *notes, *noted):
        print(line)
    print(f"written to {folder}/: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def check_settings(cfg: DictConfig) -> None:
    """Raise InputError for settings that need no network to be found bad."""
    for name, least in (("repeats", 1), ("seed", 0), ("calibration.images", 1), ("calibration.batch_size", 1)):
        check_whole(cfg, name, least)
    for name in ("compile", "int8", "accuracy", *["reduce_range"] * (cfg.reduce_range is not None)):
        check_boolean(name, cfg[name])
    sizes = plain(cfg.batch_sizes)
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise norton.InputError(f"batch_sizes is {sizes!r}; it must be a list of whole numbers of at least 1")
    if cfg.trainer.accelerator != "cpu":
        raise norton.InputError(f"trainer.accelerator is {cfg.trainer.accelerator!r}; leave it out, all is on the CPU")
    if cfg.dense is not None and cfg.checkpoint is None:
        raise norton.InputError("dense= is given without a network beside it; give that too, with checkpoint=FILE")
    check_classifier(cfg.model.arch)


def check_classifier(arch: str | None) -> None:
    """Raise InputError for the name of a detector."""
    if arch is None or arch in NETWORKS or is_path(arch):
        return
    from detection import DETECTORS  # torchvision's take over a second to import

    if arch in DETECTORS:
        raise norton.InputError(f"{arch} is a detector; only classifiers are exported, choose another model=")


if __name__ == "__main__":
    main()
