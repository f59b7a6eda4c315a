"""Count the MACs and parameters of a network."""

import importlib
from functools import partial
from typing import Protocol

from omegaconf import DictConfig
from torch import nn

import norton
from norton.checkpoints.files import holds_detector, read
from norton.cli import opening, pictures, program, tables
from norton.cli.published_flags import ABOUT_DATA, translate
from norton.cli.rows import dense_cost, macs_panel
from norton.cli.settings import plain
from norton.cli.tables import Row
from norton.common.checks import checked_input_size
from norton.common.files import write_json
from norton.measure.counting import Complexity, LayerCost, percent_removed


class Counted(Protocol):
    """The cost of a network of any kind."""

    @property
    def macs(self) -> int: ...

    @property
    def params(self) -> int: ...

    @property
    def convention(self) -> str: ...


DETECTORS = "detection.complexity"  # the module whose `count(cfg)` counts what is no classification network


@program.script("complexity", partial(translate, ignored=ABOUT_DATA))
def main(cfg: DictConfig) -> None:
    given = cfg.checkpoint is not None and holds_detector(read(cfg.checkpoint))
    arch = cfg.model.arch
    if given or (program.CONFIGS / "detector" / f"{arch}.yaml").exists():
        # Detectors are an upper room's, found by its name: torchvision's take over a second to import.
        importlib.import_module(DETECTORS).count(cfg)
        return
    if cfg.checkpoint is not None:
        net, _ = opening.open_network(cfg, told=True, new_head=True)
    elif arch is not None:
        net = opening.build_model(cfg, plain(cfg.rank) or 0, plain(cfg.compress_rate))
    else:
        raise norton.InputError("no network: give model=NAME, or checkpoint=FILE")
    size = checked_input_size(plain(cfg.input_size)) if cfg.input_size else None
    cost = norton.complexity(net, size, convention=cfg.convention)
    dense = dense_cost(net, cfg.convention, size)

    folder = program.open_folder(cfg)
    removed = percents_removed(cost, dense)
    rows = layer_rows(net, cost, dense)
    write_json(folder / "metrics.json", {"arch": net.arch, **cost.as_dict(), **removed, "dense": dense.as_dict()})
    tables.write_table(folder / "table.md", rows)
    pictures.layer_picture(folder / "picture.png", macs_panel(net, cost), f"{type(net).__name__}: {cost.macs:,} MACs")

    if cfg.by_layer:
        tables.print_table(rows, type(net).__name__)
    print_totals(cost, removed)
    if cost.params != cost.params_printed:
        print(f"        {cost.params_printed} without the biases of decomposed layers, as the published tables count")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


def percents_removed(cost: Counted, dense: Counted) -> dict[str, float]:
    """What was removed against the dense network, as files name it."""
    return {
        "macs_removed_percent": percent_removed(cost.macs, dense.macs),
        "params_removed_percent": percent_removed(cost.params, dense.params),
    }


def print_totals(cost: Counted, removed: dict[str, float]) -> None:
    print(f"MACs    {cost.macs}  ({removed['macs_removed_percent']:.2f}% removed, convention {cost.convention})")
    print(f"params  {cost.params}  ({removed['params_removed_percent']:.2f}% removed)")


def layer_rows(net: nn.Module, cost: Complexity, dense: Complexity) -> list[Row]:
    """A row per layer that costs something, and one for all, with what was removed against the dense network."""
    rows = [
        row(name, type(net.get_submodule(name)).__name__, layer, dense.by_layer[name])
        for name, layer in cost.by_layer.items()
        if layer.macs or layer.params
    ]
    return [*rows, row("total", type(net).__name__, cost, dense)]


def row(name: str, kind: str, cost: Complexity | LayerCost, dense: Complexity | LayerCost) -> Row:
    """MACs and parameters of a layer or network, and percent removed; a dash where the dense one has none."""

    def removed(part: int, whole: int) -> float | None:
        return percent_removed(part, whole) if whole else None

    return {
        "layer": name,
        "type": kind,
        "MACs": f"{cost.macs:,}",
        "removed %": removed(cost.macs, dense.macs),
        "params": f"{cost.params:,}",
        "params removed %": removed(cost.params, dense.params),
    }
