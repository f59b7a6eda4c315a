"""The whole chain: dense network → decompose → prune → fine-tune, each stage measured."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn

import norton
from norton.checkpoints import claims
from norton.checkpoints.files import read
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.chain import Chain
from norton.cli.data_checks import check_classes, check_pictures
from norton.cli.rows import cost_row, dense_cost
from norton.cli.settings import check_settings, has_budget, rates_text, require, setting_text
from norton.common.files import write_json
from norton.deployment.comparing import deploy_alike
from norton.graph.plan import plan_of
from norton.measure.latency import Latency, latencies
from norton.training import HISTORY, epochs, leave_devices

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

BASELINES = {path.stem for path in (program.CONFIGS / "experiment").glob("*_baseline.yaml")}
SCORES = {"classification": {"top1": "top-1 %"}, "segmentation": claims.SCORES["segmentation"]}  # that are shown
LABELS = {"train": "dense", "decompose": "decomposed", "prune": "pruned", "finetune": "fine-tuned"}


@program.script("pipeline", resumes=True)
def main(cfg: DictConfig) -> None:
    check_steps(cfg)
    check_settings(cfg)
    check_start(cfg)
    net, origin = opening.open_network(cfg, new_head=True)
    opening.choose_data(cfg, net, opening.named_by(net, origin) or opening.DIGITS)
    data = opening.open_data(cfg, net)
    net, origin = opening.for_data(net, origin, data, cfg)
    check_classes(net, data)
    check_data(cfg, data)
    chain = Chain(cfg, data)
    stage = chain.start(net, origin["lineage"])
    chain.check(stage, cfg.steps)
    check_file(net, cfg)
    check_pictures(data, used_splits(cfg))
    folder = program.open_folder(cfg)
    files = {}
    if "train" not in cfg.steps:
        start = stage_file(folder, 0, "start")
        files["start" if plan_of(net) else "dense"] = start
    for number, step in enumerate(cfg.steps, start=1):
        if step == "decompose" and has_budget(cfg):
            choice = chain.spend(stage, folder / "budget.json")
            tables.print_table(choice.rows(), f"chosen for {setting_text(cfg)}")
            print(choice.sentence())
        path = stage_file(folder, number, step)
        if path.exists():  # of a run that was stopped later
            stage = chain.opened(path, stage)
        else:
            stage = chain.take(stage, step, folder=folder / path.stem)
            if "train" not in cfg.steps and not start.exists():  # only now: a first step that fails leaves nothing
                norton.save(net, start, **origin)
            norton.save(stage.net, path, lineage=stage.lineage)
        files[label(step, files)] = path
    if leave_devices():  # on several devices every process runs the chain; one reports
        measure(files, cfg, data, folder)


def check_steps(cfg: DictConfig) -> None:
    """Raise InputError, before any work, for steps that cannot be run."""
    for step in cfg.steps:
        if step not in LABELS:
            raise norton.InputError(f"unknown step {step!r}; steps are {', '.join(LABELS)}")
        require(cfg, step)
    if not cfg.steps:
        raise norton.InputError(f"no steps; give e.g. steps=[decompose,prune,finetune] out of {', '.join(LABELS)}")


def check_start(cfg: DictConfig) -> None:
    """Raise InputError where the dense network of another experiment is missing."""
    if cfg.checkpoint and not Path(cfg.checkpoint).exists() and (name := Path(cfg.checkpoint).parent.name) in BASELINES:
        raise norton.InputError(
            f"no checkpoint at {cfg.checkpoint}; train it with experiment={name}, or give one with checkpoint=FILE"
        )


def check_data(cfg: DictConfig, data: "ClassificationData") -> None:
    """Raise InputError, before days of work, where data are missing that only its end would ask for."""
    for split in used_splits(cfg):
        len(getattr(data.splits, split))
    opening.check_latency_batch(cfg, data)


def used_splits(cfg: DictConfig) -> tuple[str, ...]:
    """Those that a run will read whole."""
    return ("train", "val", "test") if {"train", "finetune"} & set(cfg.steps) else ("test",)


def check_file(net: nn.Module, cfg: DictConfig) -> None:
    """Raise InputError, before any work, where the files of the chain could not be opened again at its end."""
    with TemporaryDirectory() as folder:
        opening.load_file(norton.save(net, Path(folder) / "start.pt"), cfg)


def measure(files: dict[str, Path], cfg: DictConfig, data: "ClassificationData", folder: Path) -> None:
    """Measure the network of every stage, write and show the results."""
    nets = {name: opening.load_file(path, cfg) for name, path in files.items()}
    dense = dense_cost(next(iter(nets.values())))
    costs = {name: norton.complexity(net) for name, net in nets.items()}
    accuracies = {name: steps.evaluate(net, cfg, data) for name, net in nets.items()}
    times, milliseconds = timed(nets, data, cfg), f"ms / {cfg.latency_batch} images"
    scores = SCORES[data.task]
    rows, metrics = [], {}
    for name, path in files.items():
        # The final file claims what was measured, once.
        content = read(path)
        claimed: dict[str, Any] = {**accuracies[name], "macs": costs[name].macs, "params": costs[name].params}
        if content["metrics"] != claimed | {"data": data.name}:
            norton.save(nets[name], path, metrics={**claimed, "data": data.name}, lineage=content["lineage"])
        rows.append(
            {
                "network": name,
                **{f"test {label}": accuracies[name][key] for key, label in scores.items()},
                **cost_row(costs[name], dense),
                "file MB": path.stat().st_size / 1e6,
            }
        )
        metrics[name] = {
            "arch": nets[name].arch,
            "data": data.name,
            **claimed,
            "file_bytes": path.stat().st_size,
            "checkpoint": str(path),
        }
        if times:
            rows[-1] |= {milliseconds: times[name].milliseconds, "computed as": times[name].form}
            metrics[name] |= {"latency_ms": times[name].milliseconds, "latency_form": times[name].form}
    write_json(folder / "metrics.json", metrics)
    tables.write_table(folder / "table.md", rows)
    panels = {
        **{f"test {label}": {row["network"]: row[f"test {label}"] for row in rows} for label in scores.values()},
        "MACs (millions)": {name: cost.macs / 1e6 for name, cost in costs.items()},
        "parameters (thousands)": {name: cost.params / 1e3 for name, cost in costs.items()},
        "file (MB)": {row["network"]: row["file MB"] for row in rows},
    }
    if times:
        panels[f"latency ({milliseconds})"] = {row["network"]: row[milliseconds] for row in rows}
    arch = next(iter(nets.values())).arch
    setting = f"{setting_text(cfg)}, rates {rates_text(cfg)}"
    title = f"{arch} on {data.name}" + (f": {setting}" if len(rows) > 1 else "")
    pictures.bar_picture(folder / "picture.png", panels, title)
    curves = draw_trainings(files, arch, data)
    tables.print_table(rows, title)
    first, final = next(iter(nets)), name
    if times and costs[final].macs < costs[first].macs:
        speedup = times[first].milliseconds / times[final].milliseconds
        print(tables.speed_sentence(final, costs[first].macs / costs[final].macs, speedup))
    written = ", ".join(["config.yaml, metrics.json, table.md, picture.png", *curves])
    print(f"written to {folder}/: {written}, a checkpoint per stage")
    print(f"final checkpoint: {path}")


def draw_trainings(files: Mapping[str, Path], arch: str, data: "ClassificationData") -> list[str]:
    """The learning curve of each stage that was trained, beside its checkpoint; the names of the pictures."""
    drawn = []
    for name, path in files.items():
        if found := epochs(path.with_suffix("") / HISTORY):
            picture = path.with_suffix(".png")
            pictures.curve_picture(picture, found, SCORES[data.task], f"{arch} on {data.name}: {name}")
            drawn.append(picture.name)
    return drawn


def timed(nets: Mapping[str, nn.Module], data: "ClassificationData", cfg: DictConfig) -> dict[str, Latency]:
    """What a batch of test images takes in each network; empty where `latency_batch` is null."""
    if cfg.latency_batch is None:
        return {}
    images = data.images("test", cfg.latency_batch)
    return latencies(deploy_alike(nets, images, cfg.latency, progress=True), images)


def stage_file(folder: Path, number: int, step: str) -> Path:
    return folder / f"{number}_{step}.pt"


def label(step: str, taken: dict) -> str:
    """What a stage is called in the table; a repeated step gets a number."""
    name, count = LABELS[step], 2
    while name in taken:
        name, count = f"{LABELS[step]} {count}", count + 1
    return name


if __name__ == "__main__":
    main()
