"""Count the MACs and parameters of a network."""

from functools import partial

from omegaconf import DictConfig
from torch import nn

import norton
from norton.checkpoints.files import holds_detector, read
from norton.cli import opening, pictures, program, tables
from norton.cli.published_flags import ABOUT_DATA, translate
from norton.cli.rows import dense_cost, macs_panel
from norton.cli.settings import plain
from norton.common.files import write_json
from norton.measure.counting import Complexity, LayerCost, percent_removed
from norton.models import NETWORKS
from norton.models.foreign import is_path


@program.script("complexity", partial(translate, ignored=ABOUT_DATA))
def run(cfg: DictConfig) -> None:
    given = cfg.checkpoint is not None and holds_detector(read(cfg.checkpoint))
    arch = cfg.model.arch
    if given or (arch is not None and arch not in NETWORKS and not is_path(arch)):
        count_detector(cfg)
        return
    if cfg.checkpoint is not None:
        net, _ = opening.open_network(cfg, told=True)
    elif arch is not None:
        net = opening.build_model(cfg, plain(cfg.rank) or 0, plain(cfg.compress_rate))
    else:
        raise norton.InputError("no network: give model=NAME, or checkpoint=FILE")
    size = tuple(cfg.input_size) if cfg.input_size else None
    cost = norton.complexity(net, size, convention=cfg.convention)
    dense = dense_cost(net, cfg.convention, size)

    folder = program.open_folder(cfg)
    removed = {
        "macs_removed_percent": percent_removed(cost.macs, dense.macs),
        "params_removed_percent": percent_removed(cost.params, dense.params),
    }
    rows = layer_rows(net, cost, dense)
    write_json(folder / "metrics.json", {"arch": net.arch, **cost.as_dict(), **removed, "dense": dense.as_dict()})
    tables.write_table(folder / "table.md", rows)
    pictures.layer_picture(folder / "picture.png", macs_panel(net, cost), f"{type(net).__name__}: {cost.macs:,} MACs")

    if cfg.by_layer:
        tables.print_table(rows, type(net).__name__)
    print(f"MACs    {cost.macs}  ({removed['macs_removed_percent']:.2f}% removed, convention {cost.convention})")
    print(f"params  {cost.params}  ({removed['params_removed_percent']:.2f}% removed)")
    if cost.params != cost.params_printed:
        print(f"        {cost.params_printed} without the biases of decomposed layers, as the published tables count")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


def count_detector(cfg: DictConfig) -> None:
    """Count a detector part by part, with what was removed against the dense one."""
    import detection  # torchvision's detectors take over a second to import

    options = {"proposals": cfg.proposals, "detections": cfg.detections, "convention": cfg.convention}
    if cfg.input_size:
        options["size"] = tuple(cfg.input_size)[1:]
    if cfg.checkpoint is not None:
        net = detection.load_detector(cfg.checkpoint)
        told = {"model": cfg.model.arch or net.arch, "rank": cfg.rank, "compress_rate": cfg.compress_rate}
        if told != {"model": net.arch, "rank": None, "compress_rate": None}:
            raise norton.InputError(f"{cfg.checkpoint} is a {net.arch}, which has its ranks; give neither with it")
    else:
        backbone = norton.build("resnet_50", plain(cfg.rank) or 0, plain(cfg.compress_rate))
        net = detection.build_detector(cfg.model.arch, backbone, cfg.model.num_classes)
    whole = detection.build_detector(**{**net.recipe, "backbone": norton.build("resnet_50")})
    cost, dense = (detection.detector_complexity(n, **options) for n in (net, whole))
    folder = program.open_folder(cfg)
    rows = [
        {"part": part, "MACs": f"{macs:,}", "removed %": percent_removed(macs, dense.by_part[part]) if macs else None}
        for part, macs in cost.by_part.items()
    ]
    removed = {
        "macs_removed_percent": percent_removed(cost.macs, dense.macs),
        "params_removed_percent": percent_removed(cost.params, dense.params),
    }
    rows.append({"part": "total", "MACs": f"{cost.macs:,}", "removed %": removed["macs_removed_percent"]})
    write_json(folder / "metrics.json", {"arch": net.arch, **cost.as_dict(), **removed, "dense": dense.as_dict()})
    tables.write_table(folder / "table.md", rows)
    pictures.layer_picture(folder / "picture.png", {"MACs": cost.by_part}, f"{net.arch}: {cost.macs:,} MACs")
    at = f"{cost.size[0]}×{cost.size[1]}, {cost.proposals} proposals, {cost.detections} detections"
    tables.print_table(rows, f"{net.arch} at {at}")
    print(f"MACs    {cost.macs}  ({removed['macs_removed_percent']:.2f}% removed, convention {cost.convention})")
    print(f"params  {cost.params}  ({removed['params_removed_percent']:.2f}% removed)")
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


def layer_rows(net: nn.Module, cost: Complexity, dense: Complexity) -> list[dict[str, str]]:
    """A row per layer that costs something, and one for all, with what was removed against the dense network."""
    rows = [
        row(name, type(net.get_submodule(name)).__name__, layer, dense.by_layer[name])
        for name, layer in cost.by_layer.items()
        if layer.macs or layer.params
    ]
    return [*rows, row("total", type(net).__name__, cost, dense)]


def row(name: str, kind: str, cost: Complexity | LayerCost, dense: Complexity | LayerCost) -> dict[str, str]:
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


if __name__ == "__main__":
    run()
