"""Sensitivity: what it costs to compress one layer alone, for each layer, over ranks and rates, without training."""

import copy
import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.data_checks import check_classes
from norton.cli.settings import check_settings, check_whole, find_device, plain
from norton.common.checks import is_number
from norton.common.files import write_json, write_whole
from norton.decomposition.ranks import layer_rules
from norton.graph.layers import in_form
from norton.graph.logits import logits_in
from norton.measure.counting import percent_removed
from norton.pruning.allocation import prunable

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

KINDS = {"rank": "decompose", "rate": "prune"}  # what is swept → the step that does it
BATCH = 128


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
    check_classes(net, data)
    device = find_device(cfg.device)
    trials = chosen([*ranked(net, cfg), *rated(net, cfg)], cfg)
    images, labels = data.labelled(cfg.split, min(cfg.images, len(getattr(data.splits, cfg.split))))
    folder = program.open_folder(cfg)
    net = net.to(device)
    images, labels = images.to(device), labels.to(device)
    found = measure_all(net, trials, cfg, data, images, labels, folder / "trials.json")

    title = f"{net.arch} on {data.name}, {cfg.split}: one layer compressed at a time"
    score, label = opening.score_of(data)
    rows = table(found, score)
    write_json(folder / "metrics.json", summary(net, data, cfg, found))
    write_whole(folder / "sensitivity.csv", as_csv(found, score))
    picture(folder / "picture.png", found, title, score, lost(label))
    tables.write_table(folder / "table.md", rows)
    tables.print_table(rows, f"{title}, {lost(label)}")
    print(f"dense {label.removesuffix(' %')} {found['dense'][score]:.2f}% of {len(images)} images")
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
    found, score = measured_before(path), Score(data)
    outputs = list(logits(net, images, data))
    whole = score.of(outputs, labels)
    cost = norton.complexity(net, data.input_size)
    found["dense"] = {score.name: whole, "macs": cost.macs, "params": cost.params}
    missing = [trial for trial in trials if trial.key not in found]
    if len(missing) < len(trials):
        print(f"{len(trials) - len(missing)} of {len(trials)} are measured already")
    for trial in track(missing, "layers", disable=not missing):
        small = compressed(net, trial, cfg, data)
        value, error = score.with_error(logits(small, images, data), outputs, labels)
        macs = norton.complexity(small, data.input_size).macs
        found[trial.key] = {
            **trial._asdict(),
            score.name: value,
            f"{score.name}_lost": whole - value,
            "output_error": error,
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
def logits(net: nn.Module, images: Tensor, data: "ClassificationData") -> Iterator[Tensor]:
    """The outputs of one batch after the other on the CPU, for those of pixels are many."""
    net = copy.deepcopy(net).eval()
    with in_form(net, "fast"):
        for batch in images.split(min(BATCH, data.batch_size)):
            yield logits_in(net(batch)).cpu()


class Score:
    """The score that decides for the task of the data, in percent, of outputs that are there already."""

    def __init__(self, data: "ClassificationData"):
        from norton.training.fit import task_of  # Lightning takes seconds to import
        from norton.training.recipe import Recipe

        self.task = task_of(nn.Identity(), Recipe(epochs=0), data)
        self.name = self.task.names[0]

    def of(self, outputs: Sequence[Tensor], labels: Tensor) -> float:
        return self.with_error(outputs, outputs, labels)[0]

    def with_error(self, answers: Iterable[Tensor], outputs: Sequence[Tensor], labels: Tensor) -> tuple[float, float]:
        """The score of answers ŷ, and Σ ‖y - ŷ‖² / Σ ‖y‖² beside outputs y, both of all batches, before the softmax."""
        metric, apart, whole = self.task.scores[f"test_{self.name}"], 0.0, 0.0
        metric.reset()
        for answer, output, label in zip(answers, outputs, labels.cpu().split([*map(len, outputs)]), strict=True):
            metric.update(self.task.judge(answer, label)[0], label)
            apart += (output.double() - answer.double()).square().sum().item()
            whole += output.double().square().sum().item()
        return round(100 * metric.compute().item(), 4), apart / whole


def values_of(found: Mapping[str, Any], kind: str) -> tuple[list[str], list[Any]]:
    """The layers and the ranks or rates that were measured."""
    mine = [one for one in found.values() if one.get("kind") == kind]
    values = {str(one["value"]): one["value"] for one in mine}
    return list(dict.fromkeys(one["layer"] for one in mine)), list(values.values())


def lost(label: str) -> str:
    """What the points lost of a score are called, whose name in tables is `label`."""
    return f"{label.removesuffix(' %')} points lost"


def table(found: Mapping[str, Any], score: str) -> list[dict[str, Any]]:
    """A row per layer with the points of the score lost at each rank and rate; None where it was not tried."""
    settings = [(kind, value) for kind in KINDS for value in values_of(found, kind)[1]]
    layers = dict.fromkeys(layer for kind in KINDS for layer in values_of(found, kind)[0])
    return [
        {
            "layer": layer,
            **{f"{k} {v}": found.get(Trial(k, v, layer).key, {}).get(f"{score}_lost") for k, v in settings},
        }
        for layer in layers
    ]


def summary(net: nn.Module, data: "ClassificationData", cfg: DictConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    trials = [one for key, one in found.items() if key != "dense"]
    about = {"arch": net.arch, "data": data.name, "split": cfg.split, "images": cfg.images}
    return {**about, "dense": found["dense"], "trials": trials}


def as_csv(found: Mapping[str, Any], score: str) -> str:
    text = io.StringIO()
    columns = ("layer", "kind", "value", score, f"{score}_lost", "output_error", "macs_removed_percent")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: one[column] for column in columns} for key, one in found.items() if key != "dense")
    return text.getvalue()


def picture(path: Path, found: Mapping[str, Any], title: str, score: str, points: str) -> None:
    """Heat maps, layers × ranks and layers × rates: points of the score lost, and the error of the outputs.

    points: what the points lost are called.
    """
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if values_of(found, kind)[0]]
    tallest = max(len(values_of(found, kind)[0]) for kind in kinds)
    figure = Figure(figsize=(4.2 * 2 * len(kinds), 1.6 + 0.17 * max(tallest, 8)), layout="constrained")
    axes = figure.subplots(1, 2 * len(kinds), squeeze=False)[0]
    measures = {f"{score}_lost": points, "output_error": "relative squared error of the outputs"}
    panels = [(kind, measure) for kind in kinds for measure in measures]
    for axis, (kind, measure) in zip(axes, panels, strict=True):
        heat_map(figure, axis, found, kind, measure)
        axis.set_title(f"{KINDS[kind]}: {measures[measure]}", fontsize=9)
    pictures.save_figure(path, figure, title)


def heat_map(figure, axis, found: Mapping[str, Any], kind: str, measure: str) -> None:
    from matplotlib.colors import LogNorm

    layers, values = values_of(found, kind)
    nan = {measure: float("nan")}
    cells = [[found.get(Trial(kind, v, layer).key, nan)[measure] for v in values] for layer in layers]
    options: dict[str, Any] = {"cmap": "viridis_r", "aspect": "auto"}
    if measure == "output_error" and (positive := [cell for row in cells for cell in row if cell > 0]):
        options["norm"] = LogNorm(min(positive), max(max(positive), 1.01 * min(positive)))
    image = axis.imshow(cells, **options)
    figure.colorbar(image, ax=axis, shrink=0.6)
    axis.set_xticks(range(len(values)), [str(value) for value in values], fontsize=8)
    axis.set_yticks(range(len(layers)), layers, fontsize=6)
    axis.set_xlabel(kind, fontsize=9)


if __name__ == "__main__":
    main()
