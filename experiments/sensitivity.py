"""Sensitivity: what it costs to compress one layer alone, for each layer, over ranks and rates, without training."""

import copy
import csv
import io
import json
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.settings import check_settings, check_whole, find_device, plain
from norton.common.checks import is_number
from norton.common.files import write_json, write_whole
from norton.decomposition.ranks import layer_rules
from norton.graph.layers import in_form
from norton.measure.counting import percent_removed
from norton.pruning.allocation import prunable

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

KINDS = {"rank": "decompose", "rate": "prune"}  # what is swept → the step that does it
BATCH = 128
COLUMNS = ("layer", "kind", "value", "top1", "top1_lost", "output_error", "macs_removed_percent")


class Trial(NamedTuple):
    """One layer, compressed alone."""

    kind: str
    value: Any
    layer: str

    @property
    def key(self) -> str:
        return f"{self.kind} {self.value} {self.layer}"


@program.script("sensitivity", resumes=True)
def main(cfg: DictConfig) -> None:
    check(cfg)
    net, origin = opening.open_network(cfg)
    opening.choose_data(cfg, net, opening.about_of(net, origin))
    data = opening.open_data(cfg, net)
    opening.check_classes(net, data)
    opening.check_top1(data, "sensitivity")
    device = find_device(cfg.device)
    trials = chosen([*ranked(net, cfg), *rated(net, cfg)], cfg)
    images, labels = data.labelled(cfg.split, min(cfg.images, len(getattr(data.splits, cfg.split))))
    folder = program.open_folder(cfg)
    net = net.to(device)
    images, labels = images.to(device), labels.to(device)
    found = measure_all(net, trials, cfg, data, images, labels, folder / "trials.json")

    title = f"{net.arch} on {data.name}, {cfg.split}: one layer compressed at a time"
    rows = table(found)
    write_json(folder / "metrics.json", summary(net, data, cfg, found))
    write_whole(folder / "sensitivity.csv", as_csv(found))
    picture(folder / "picture.png", found, title)
    tables.write_table(folder / "table.md", rows)
    tables.print_table(rows, f"{title}, top-1 points lost")
    print(f"dense top-1 {found['dense']['top1']:.2f}% of {len(images)} images")
    print(f"written to {folder}/: config.yaml, metrics.json, sensitivity.csv, table.md, picture.png")


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that need no network to be found bad."""
    check_settings(cfg)
    check_whole(cfg, "images", 1)
    for name in ("ranks", "rates", "layers"):
        values = plain(cfg[name])
        if values is not None and not isinstance(values, list):
            raise norton.InputError(f"{name} is {values!r}; give a list, e.g. {name}=[...]")
        if values and len({str(value) for value in values}) < len(values):
            raise norton.InputError(f"{name} is {values!r}; each may stand there once")
    for rate in plain(cfg.rates) or []:
        if not is_number(rate) or not 0 < rate < 1:
            raise norton.InputError(f"rates has {rate!r}; a rate is the fraction of filters removed, between 0 and 1")


def ranked(net: nn.Module, cfg: DictConfig) -> list[Trial]:
    """A trial per rank and layer that can be decomposed.  Raises InputError for a rank that does not fit."""
    trials = []
    for rank in plain(cfg.ranks) or []:
        trials += [Trial("rank", rank, layer) for layer in rules(net, rank, cfg)]
    return trials


def rules(net: nn.Module, rank: Any, cfg: DictConfig) -> dict[str, Any]:
    """Layer → its rank, clipped to what it has room for."""
    return layer_rules(net, rank, plain(cfg.decomposition.skip), cfg.decomposition.method)


def rated(net: nn.Module, cfg: DictConfig) -> list[Trial]:
    """A trial per rate and channel axis that can be pruned, named after the first layer that writes it."""
    wiring = norton.wiring_of(net)
    layers = [wiring.name(axis) for axis in prunable(wiring)]
    return [Trial("rate", rate, layer) for rate in plain(cfg.rates) or [] for layer in layers]


def chosen(trials: Sequence[Trial], cfg: DictConfig) -> list[Trial]:
    """Those of layers that a pattern of `layers=` matches; null: all.

    Raises InputError for a pattern that matches none, and where there is nothing to measure.
    """
    patterns, layers = plain(cfg.layers), list(dict.fromkeys(trial.layer for trial in trials))
    if not trials or patterns == []:
        raise norton.InputError("nothing to measure: give ranks=[1,2] or rates=[0.25,0.5], or other layers=")
    for pattern in patterns or []:
        if not any(fnmatchcase(layer, str(pattern)) for layer in layers):
            raise norton.InputError(
                f"layers: pattern {pattern!r} matches none of the {len(layers)} layers to compress: "
                f"{', '.join(layers[:4])}{', ...' if len(layers) > 4 else ''}; layers that write to one residual "
                "stream are pruned together, under the name of the first"
            )
    if patterns is None:
        return list(trials)
    return [trial for trial in trials if any(fnmatchcase(trial.layer, str(pattern)) for pattern in patterns)]


def measure_all(
    net: nn.Module, trials: Sequence[Trial], cfg: DictConfig, data, images: Tensor, labels: Tensor, path: Path
) -> dict[str, Any]:
    """{"dense": result, trial's key: result}; what an earlier start has measured is taken from `path`."""
    found = measured_before(path)
    outputs = logits(net, images)
    cost = norton.complexity(net, data.input_size)
    found["dense"] = {"top1": top1(outputs, labels), "macs": cost.macs, "params": cost.params}
    missing = [trial for trial in trials if trial.key not in found]
    if len(missing) < len(trials):
        print(f"{len(trials) - len(missing)} of {len(trials)} are measured already")
    for trial in track(missing, "layers", disable=not missing):
        small = compressed(net, trial, cfg, data)
        answers = logits(small, images)
        macs = norton.complexity(small, data.input_size).macs
        found[trial.key] = {
            **trial._asdict(),
            "top1": top1(answers, labels),
            "top1_lost": found["dense"]["top1"] - top1(answers, labels),
            "output_error": output_error(outputs, answers),
            "macs_removed_percent": percent_removed(macs, cost.macs),
        }
        write_json(path, found)
    keys = ["dense", *(trial.key for trial in trials)]
    return {key: found[key] for key in keys}


def measured_before(path: Path) -> dict[str, Any]:
    """The results of an earlier start.  Raises InputError where the file is damaged."""
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        raise norton.InputError(f"{path} is damaged; remove it, and all is measured again") from None


def compressed(net: nn.Module, trial: Trial, cfg: DictConfig, data: "ClassificationData") -> nn.Module:
    """The network with one layer decomposed or pruned, BatchNorm left or mended as configured."""
    cfg = cfg.copy()
    if trial.kind == "rank":
        cfg.rank = {trial.layer: rules(net, trial.value, cfg)[trial.layer]}
        small = steps.decompose(net, cfg, data, progress=False)
    else:
        cfg.compress_rate = {trial.layer: trial.value}
        small = steps.prune(net, cfg, data, progress=False)
    steps.calibrate_(small, net, cfg, data)
    return small


@torch.inference_mode()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    """(N, classes) float64 outputs on the CPU."""
    net = copy.deepcopy(net).eval()
    with in_form(net, "fast"):
        return torch.cat([net(batch).double().cpu() for batch in images.split(BATCH)])


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Accuracy in percent."""
    return 100 * (outputs.argmax(1) == labels.cpu()).double().mean().item()


def output_error(outputs: Tensor, answers: Tensor) -> float:
    """Σ ‖y - ŷ‖² / Σ ‖y‖² over images, of the network's outputs before the softmax."""
    return ((outputs - answers).square().sum() / outputs.square().sum()).item()


def values_of(found: Mapping[str, Any], kind: str) -> tuple[list[str], list[Any]]:
    """The layers and the ranks or rates that were measured."""
    mine = [one for one in found.values() if one.get("kind") == kind]
    values = {str(one["value"]): one["value"] for one in mine}
    return list(dict.fromkeys(one["layer"] for one in mine)), list(values.values())


def table(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per layer with the top-1 points lost at each rank and rate; None where it was not tried."""
    settings = [(kind, value) for kind in KINDS for value in values_of(found, kind)[1]]
    layers = dict.fromkeys(layer for kind in KINDS for layer in values_of(found, kind)[0])
    return [
        {
            "layer": layer,
            **{f"{k} {v}": found.get(Trial(k, v, layer).key, {}).get("top1_lost") for k, v in settings},
        }
        for layer in layers
    ]


def summary(net: nn.Module, data: "ClassificationData", cfg: DictConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    trials = [one for key, one in found.items() if key != "dense"]
    about = {"arch": net.arch, "data": data.name, "split": cfg.split, "images": cfg.images}
    return {**about, "dense": found["dense"], "trials": trials}


def as_csv(found: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: one[column] for column in COLUMNS} for key, one in found.items() if key != "dense")
    return text.getvalue()


def picture(path: Path, found: Mapping[str, Any], title: str) -> None:
    """Heat maps, layers × ranks and layers × rates: top-1 points lost, and the error of the outputs."""
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if values_of(found, kind)[0]]
    tallest = max(len(values_of(found, kind)[0]) for kind in kinds)
    figure = Figure(figsize=(4.2 * 2 * len(kinds), 1.6 + 0.17 * max(tallest, 8)), layout="constrained")
    axes = figure.subplots(1, 2 * len(kinds), squeeze=False)[0]
    panels = [(kind, measure) for kind in kinds for measure in ("top1_lost", "output_error")]
    for axis, (kind, measure) in zip(axes, panels, strict=True):
        heat_map(figure, axis, found, kind, measure)
    pictures.save_figure(path, figure, title)


def heat_map(figure, axis, found: Mapping[str, Any], kind: str, measure: str) -> None:
    from matplotlib.colors import LogNorm

    layers, values = values_of(found, kind)
    nan = {"top1_lost": float("nan"), "output_error": float("nan")}
    cells = [[found.get(Trial(kind, v, layer).key, nan)[measure] for v in values] for layer in layers]
    options: dict[str, Any] = {"cmap": "viridis_r", "aspect": "auto"}
    if measure == "output_error" and (positive := [cell for row in cells for cell in row if cell > 0]):
        options["norm"] = LogNorm(min(positive), max(max(positive), 1.01 * min(positive)))
    image = axis.imshow(cells, **options)
    figure.colorbar(image, ax=axis, shrink=0.6)
    axis.set_xticks(range(len(values)), [str(value) for value in values], fontsize=8)
    axis.set_yticks(range(len(layers)), layers, fontsize=6)
    axis.set_xlabel(kind, fontsize=9)
    name = {"top1_lost": "top-1 points lost", "output_error": "relative squared error of the outputs"}[measure]
    axis.set_title(f"{KINDS[kind]}: {name}", fontsize=9)


if __name__ == "__main__":
    main()
