"""What the command `complexity` does with a detector: count it part by part."""

from omegaconf import DictConfig

import norton
from detection.checkpoints import load_detector
from detection.counting import detector_complexity
from detection.models import build_detector
from norton.cli import pictures, program, tables
from norton.cli.commands.complexity import percents_removed, print_totals
from norton.cli.settings import plain
from norton.common.files import write_json
from norton.measure.counting import percent_removed


def count(cfg: DictConfig) -> None:
    """Count a detector, with what was removed against the dense one; write and show the results."""
    options = {"proposals": cfg.proposals, "detections": cfg.detections, "convention": cfg.convention}
    if cfg.input_size:
        options["size"] = tuple(cfg.input_size)[1:]
    if cfg.checkpoint is not None:
        net = load_detector(cfg.checkpoint)
        told = {"model": cfg.model.arch or net.arch, "rank": cfg.rank, "compress_rate": cfg.compress_rate}
        if told != {"model": net.arch, "rank": None, "compress_rate": None}:
            raise norton.InputError(f"{cfg.checkpoint} is a {net.arch}, which has its ranks; give neither with it")
    else:
        backbone = norton.build("resnet_50", plain(cfg.rank) or 0, plain(cfg.compress_rate))
        net = build_detector(cfg.model.arch, backbone, cfg.model.num_classes)
    whole = build_detector(**{**net.recipe, "backbone": norton.build("resnet_50")})
    cost, dense = (detector_complexity(n, **options) for n in (net, whole))
    folder = program.open_folder(cfg)
    rows = [
        {"part": part, "MACs": f"{macs:,}", "removed %": percent_removed(macs, dense.by_part[part]) if macs else None}
        for part, macs in cost.by_part.items()
    ]
    removed = percents_removed(cost, dense)
    rows.append({"part": "total", "MACs": f"{cost.macs:,}", "removed %": removed["macs_removed_percent"]})
    write_json(folder / "metrics.json", {"arch": net.arch, **cost.as_dict(), **removed, "dense": dense.as_dict()})
    tables.write_table(folder / "table.md", rows)
    pictures.layer_picture(folder / "picture.png", {"MACs": cost.by_part}, f"{net.arch}: {cost.macs:,} MACs")
    at = f"{cost.size[0]}×{cost.size[1]}, {cost.proposals} proposals, {cost.detections} detections"
    tables.print_table(rows, f"{net.arch} at {at}")
    print_totals(cost, removed)
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")
