"""The error of decomposing, per layer and rank: NMSE beside what was removed and the accuracy without fine-tuning."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig
from torch import nn

import norton
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.settings import check_settings, plain
from norton.common.checks import check_boolean, is_whole_number
from norton.common.files import write_json, write_whole
from norton.decomposition.ranks import layer_rules
from norton.graph.layers import is_decomposed
from norton.graph.plan import plan_of
from norton.measure.counting import percent_removed

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


@program.script("nmse")
def main(cfg: DictConfig) -> None:
    check(cfg)
    net, origin = opening.open_network(cfg)
    opening.choose_data(cfg, net, opening.about_of(net, origin))
    given = open_compressed(net, cfg)
    if given is None:
        check_ranks(net, cfg)
    data = opening.open_data(cfg, net) if cfg.accuracy else None
    score, label = opening.score_of(data)
    dense = steps.evaluate(net, cfg, data)[score] if data else None
    found = measure_all(net, given, cfg, data)
    results = dict([next(found)])  # a bad option of the method or of calibration shows here, before anything is written
    folder = program.open_folder(cfg)
    results |= dict(found)

    kind = "rank" if given is None else "checkpoint"
    title = f"{net.arch}: NMSE per {kind}"
    rows = table(results, dense, kind, (score, label))
    names = {"arch": net.arch, "data": data.name if data else None}
    write_json(folder / "metrics.json", {**names, f"dense_{score}": dense, "networks": list(results.values())})
    write_whole(folder / "nmse_by_layer.csv", layers_csv(results, kind))
    tables.write_table(folder / "table.md", rows)
    picture(folder / "picture.png", results, dense, title, kind, (score, label))
    tables.print_table(rows, title)
    print(f"written to {folder}/: config.yaml, metrics.json, nmse_by_layer.csv, table.md, picture.png")


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that need no network to be found bad."""
    check_settings(cfg)
    check_boolean("accuracy", cfg.accuracy)
    ranks = plain(cfg.ranks)
    if not isinstance(ranks, list) or not ranks:
        raise norton.InputError(f"ranks is {ranks!r}; give a list of at least one, e.g. ranks=[1,2,3]")
    for rank in ranks:
        if not is_whole_number(rank):
            raise norton.InputError(f"ranks has {rank!r}; ranks are whole numbers of at least 1")
    if cfg.compressed is None and (cfg.rank is not None or cfg.compress_rate is not None):
        raise norton.InputError(
            "rank and compress_rate tell of the files of compressed=; to decompose give ranks=[...]"
        )


def check_ranks(net: nn.Module, cfg: DictConfig) -> None:
    """Raise InputError where the network cannot be decomposed at a rank."""
    if any(is_decomposed(layer) for layer in net.modules()):
        origin = cfg.checkpoint or cfg.model.arch
        raise norton.InputError(f"{origin}: is decomposed already; give the dense checkpoint, and this as compressed=")
    for rank in plain(cfg.ranks):
        layer_rules(net, rank, plain(cfg.decomposition.skip), cfg.decomposition.method)


def open_compressed(net: nn.Module, cfg: DictConfig) -> dict[str, nn.Module] | None:
    """Label → network of `compressed=`; None where there is none and ranks are to be tried.

    Raises InputError, with the name of the file, for one whose layers cannot be compared with those of `net`.
    """
    if cfg.compressed is None:
        return None
    nets = open_files(cfg)
    for path, small in nets.items():
        check_comparable(net, small, path)
    return dict(zip(tables.labels(list(nets)), nets.values(), strict=True))


def open_files(cfg: DictConfig) -> dict[str, nn.Module]:
    """Path → network, for each file of `compressed=`."""
    paths = [cfg.compressed] if isinstance(cfg.compressed, str) else plain(cfg.compressed)
    if not isinstance(paths, list) or not paths:
        raise norton.InputError(f"compressed is {paths!r}; give compressed=[FILE,...]")
    told = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)}
    return {str(path): opening.load_file(path, cfg, **told) for path in paths}


def check_comparable(net: nn.Module, small: nn.Module, path: str) -> None:
    if any(is_decomposed(layer) for layer in net.modules()):
        raise norton.InputError("the network of checkpoint= is decomposed itself; give the dense one")
    if (small.arch, small.num_classes) != (net.arch, net.num_classes):
        raise norton.InputError(
            f"{path}: is a {small.arch} of {small.num_classes} classes, the dense network a {net.arch} of "
            f"{net.num_classes}; NMSE compares the same network before and after decomposing"
        )
    if pruned(small) != pruned(net):  # at equal widths the channels would still be others
        raise norton.InputError(
            f"{path}: was pruned, so its filters are no longer those of the dense network; give a checkpoint from "
            "before pruning"
        )
    try:
        norton.layer_nmse(net, small)
    except norton.InputError as error:
        raise norton.InputError(f"{path}: {error}") from None


def pruned(net: nn.Module) -> list[dict]:
    return [step for step in plan_of(net) if step["op"] == "prune"]


def measure_all(
    net: nn.Module, given: dict | None, cfg: DictConfig, data: "ClassificationData | None"
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Label and result of one network after the other: the given ones, or one decomposed at each rank."""
    whole = norton.complexity(net)
    names = list(given or dict.fromkeys(str(rank) for rank in cfg.ranks))
    for number, label in enumerate(names, start=1):
        print(f"{number} of {len(names)}: {label if given else f'rank {label}'}", flush=True)
        small = given[label] if given else steps.decompose(net, at_rank(cfg, int(label)), data)
        yield label, measure(net, small, whole, cfg, data)


def at_rank(cfg: DictConfig, rank: int) -> DictConfig:
    cfg = cfg.copy()
    cfg.rank = rank
    return cfg


def measure(
    net: nn.Module,
    small: nn.Module,
    whole: norton.measure.counting.Complexity,
    cfg: DictConfig,
    data: "ClassificationData | None",
) -> dict:
    """What is reported of one decomposed network; whole: the cost of the dense one."""
    cost = norton.complexity(small)
    ranks = sorted({layer.rank for layer in small.modules() if is_decomposed(layer)}, key=str)
    result = {
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "nmse": norton.nmse(net, small),
        "nmse_by_layer": norton.layer_nmse(net, small),
        "macs": cost.macs,
        "params": cost.params,
        "macs_removed_percent": percent_removed(cost.macs, whole.macs),
        "params_removed_percent": percent_removed(cost.params, whole.params),
    }
    if data is not None:
        steps.calibrate_(small, net, cfg, data)
        score, _ = opening.score_of(data)
        result[score] = steps.evaluate(small, cfg, data)[score]
    return result


def table(results: Mapping[str, dict], dense: float | None, kind: str, score: tuple[str, str]) -> list[dict]:
    """The rows of the paper's rank ablation, below one for the dense network; kind: what tells networks apart.

    dense: the dense network's score, None where none was measured; score: its name in results, and in tables.
    """
    name, label = score
    accuracy = f"{label} without fine-tuning" if kind == "rank" else label  # a given file may be fine-tuned
    rows = [{kind: "dense", "NMSE": None, "MACs removed %": 0.0, "params removed %": 0.0, accuracy: dense}]
    for label, result in results.items():
        row = {
            kind: label,
            "NMSE": f"{result['nmse']:.4f}",
            "MACs removed %": result["macs_removed_percent"],
            "params removed %": result["params_removed_percent"],
            accuracy: result.get(name),
        }
        rows.append(row)
    return rows if dense is not None else [{key: row[key] for key in row if key != accuracy} for row in rows]


def all_layers(results: Mapping[str, dict]) -> list[str]:
    return list(dict.fromkeys(name for result in results.values() for name in result["nmse_by_layer"]))


def layers_csv(results: Mapping[str, dict], kind: str) -> str:
    """Layers × networks as CSV; empty where a network leaves the layer dense."""
    layers = all_layers(results)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["layer", *(f"rank {label}" if kind == "rank" else label for label in results)])
    writer.writerows([name, *(result["nmse_by_layer"].get(name) for result in results.values())] for name in layers)
    return text.getvalue()


def picture(
    path: Path, results: Mapping[str, dict], dense: float | None, title: str, kind: str, score: tuple[str, str]
) -> None:
    """NMSE per layer, a line per network, above NMSE and accuracy per network; dense, score: as for `table`."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    layers = all_layers(results)
    figure = Figure(figsize=(max(8.0, 0.16 * len(layers) + 2), 7), layout="constrained")
    lower = ["nmse", "nmse" if dense is None else "score"]
    axes = figure.subplot_mosaic([["layers", "layers"], lower], height_ratios=[1.3, 1])
    colours = [colormaps["viridis"](0.9 * i / max(1, len(results) - 1)) for i in range(len(results))]
    for colour, (label, result) in zip(colours, results.items(), strict=True):
        values = [result["nmse_by_layer"].get(name, float("nan")) for name in layers]
        axes["layers"].plot(layers, values, label=label, color=colour, marker=".", linewidth=1)
    axes["layers"].tick_params(axis="x", labelrotation=90, labelsize=7)
    axes["layers"].margins(x=0.01)
    axes["layers"].set_ylabel("NMSE of the layer", fontsize=9)
    axes["layers"].legend(title=kind, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    places = [int(label) if kind == "rank" else number for number, label in enumerate(results)]
    axes["nmse"].plot(places, [result["nmse"] for result in results.values()], marker="o", color="#4c72b0")
    axes["nmse"].set_ylabel("NMSE of the network", fontsize=9)
    if dense is not None:
        name, label = score
        axes["score"].plot(places, [result[name] for result in results.values()], marker="o", color="#dd8452")
        axes["score"].axhline(dense, color="#8c8c8c", linestyle="--", linewidth=1)
        axes["score"].annotate("dense", (0.01, dense), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
        axes["score"].set_ylabel(f"test {label}", fontsize=9)
        axes["score"].set_ylim(0, 105)
    for name in lower:
        axes[name].set_xlabel(kind, fontsize=9)
        axes[name].set_xticks(places, list(results), **({} if kind == "rank" else {"rotation": 20, "ha": "right"}))
        axes[name].tick_params(labelsize=8)
        axes[name].set_ylim(bottom=0)
    for axis in axes.values():
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    pictures.save_figure(path, figure, title)


if __name__ == "__main__":
    main()
