"""The whole chain: dense network → decompose → prune → fine-tune, each stage measured."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

import norton
from norton.checkpoints.files import read
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.budgets import spend_budget
from norton.cli.chain import can_teach, check_teachers, lineage_record
from norton.cli.rows import cost_row, dense_cost
from norton.cli.settings import RECIPES, check_settings, has_budget, rates_text, require, setting_text
from norton.common.files import write_json
from norton.deployment.comparing import deploy_alike
from norton.graph.plan import plan_of
from norton.measure.latency import latencies
from norton.training import leave_devices

BASELINES = {path.stem for path in (program.CONFIGS / "experiment").glob("*_baseline.yaml")}
LABELS = {"train": "dense", "decompose": "decomposed", "prune": "pruned", "finetune": "fine-tuned"}


@program.script("pipeline", resumes=True)
def main(cfg: DictConfig) -> None:
    check_steps(cfg)
    check_settings(cfg)
    data = opening.open_data(cfg)
    check_start(cfg)
    net, origin = opening.open_network(cfg)
    opening.check_classes(net, data)
    check_data(cfg, data)
    for step in cfg.steps:
        steps.check_fit(net, cfg, step)
    check_teachers(net, origin["lineage"], cfg, cfg.steps, data)
    folder = program.open_folder(cfg)
    stages = {}
    if "train" not in cfg.steps:
        start = stage_file(folder, 0, "start")
        stages["start" if plan_of(net) else "dense"] = start
        if not start.exists():
            norton.save(net, start, **origin)
    dense = None
    for number, step in enumerate(cfg.steps, start=1):
        if step == "decompose" and has_budget(cfg):
            cfg, choice = spend_budget(net, cfg, data, path=folder / "budget.json")
            tables.print_table(choice.rows(), f"chosen for {setting_text(cfg)}")
            print(choice.sentence())
        if can_teach(net, origin["lineage"], opened=cfg.checkpoint is not None):
            dense = net
        net, origin["lineage"] = run_step(net, origin["lineage"], step, number, cfg, data, folder, dense)
        stages[label(step, stages)] = stage_file(folder, number, step)
    if leave_devices():  # on several devices every process runs the chain; one reports
        measure(stages, cfg, data, folder)


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


def check_data(cfg: DictConfig, data) -> None:
    """Raise InputError, before days of work, where data are missing that only its end would ask for."""
    splits = data.splits
    if {"train", "finetune"} & set(cfg.steps):
        len(splits.train), len(splits.val)
    opening.check_latency_batch(cfg, data)


def run_step(
    net: nn.Module,
    lineage: list,
    step: str,
    number: int,
    cfg: DictConfig,
    data,
    folder: Path,
    dense: nn.Module | None,
) -> tuple[nn.Module, list]:
    """Run one step and save its network, or take the network of a run that was stopped after it.

    dense: the last network of the chain before any compression, if it was trained.
    """
    path = stage_file(folder, number, step)
    if path.exists():
        return opening.load_file(path, cfg), read(path)["lineage"]
    if step == "decompose":
        net, used = steps.decompose(net, cfg, data), ("rank", "decomposition", "calibration")
    elif step == "prune":
        net, used = steps.prune(net, cfg, data), ("compress_rate", "pruning", "calibration")
    else:
        recipe = RECIPES[step]
        net = steps.fit(net, cfg, recipe, data, folder / f"{number}_{step}", dense=dense)
        used = (recipe, "data", "seed")
    if step in ("decompose", "prune"):
        steps.calibrate_(net, cfg, data)
    lineage = [*lineage, lineage_record(step, cfg, used)]
    norton.save(net, path, lineage=lineage)
    return net.eval(), lineage


def measure(stages: dict[str, Path], cfg: DictConfig, data, folder: Path) -> None:
    """Measure every stage, write and show the results."""
    nets = {name: opening.load_file(path, cfg) for name, path in stages.items()}
    dense = dense_cost(next(iter(nets.values())))
    costs = {name: norton.complexity(net) for name, net in nets.items()}
    accuracies = {name: steps.evaluate(net, cfg, data) for name, net in nets.items()}
    images = data.images("test", cfg.latency_batch)
    times = latencies(deploy_alike(nets, images, cfg.latency, progress=True), images)
    milliseconds = f"ms / {cfg.latency_batch} images"
    rows, metrics = [], {}
    for name, path in stages.items():
        # The final file claims what was measured, once.
        content = read(path)
        claims: dict[str, Any] = {**accuracies[name], "macs": costs[name].macs, "params": costs[name].params}
        if content["metrics"] != claims | {"data": data.name}:
            norton.save(nets[name], path, metrics={**claims, "data": data.name}, lineage=content["lineage"])
        rows.append(
            {
                "network": name,
                "test top-1 %": accuracies[name]["top1"],
                **cost_row(costs[name], dense),
                "file MB": path.stat().st_size / 1e6,
                milliseconds: times[name].milliseconds,
                "computed as": times[name].form,
            }
        )
        metrics[name] = {
            "arch": nets[name].arch,
            "data": data.name,
            **claims,
            "file_bytes": path.stat().st_size,
            "latency_ms": times[name].milliseconds,
            "latency_form": times[name].form,
            "checkpoint": str(path),
        }
    write_json(folder / "metrics.json", metrics)
    tables.write_table(folder / "table.md", rows)
    panels = {
        "test accuracy (top-1, %)": {row["network"]: row["test top-1 %"] for row in rows},
        "MACs (millions)": {name: cost.macs / 1e6 for name, cost in costs.items()},
        "parameters (thousands)": {name: cost.params / 1e3 for name, cost in costs.items()},
        "file (MB)": {row["network"]: row["file MB"] for row in rows},
        f"latency ({milliseconds})": {row["network"]: row[milliseconds] for row in rows},
    }
    arch = next(iter(nets.values())).arch
    setting = f"{setting_text(cfg)}, rates {rates_text(cfg)}"
    title = f"{arch} on {data.name}" + (f": {setting}" if len(rows) > 1 else "")
    pictures.bar_picture(folder / "picture.png", panels, title)
    tables.print_table(rows, title)
    first, final = next(iter(times)), name
    if costs[final].macs < costs[first].macs:
        speedup = times[first].milliseconds / times[final].milliseconds
        print(tables.speed_sentence(final, costs[first].macs / costs[final].macs, speedup))
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png, a checkpoint per stage")
    print(f"final checkpoint: {path}")


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
