"""What the detection programs share: data of a config, and scores as files for people and for COCO."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from detection.data import DetectionData
from detection.scoring import results_for
from norton.cli import pictures, tables
from norton.cli.settings import plain
from norton.common.errors import InputError
from norton.common.files import write_json

KINDS = {"fasterrcnn": "boxes", "maskrcnn": "masks", "keypointrcnn": "keypoints"}  # what each detector learns


def open_data(cfg: DictConfig, kind: str, splits: Sequence[str] = ("train", "val", "test")) -> DetectionData:
    """The data of `data`; these splits are looked for at once."""
    try:
        data = DetectionData(**plain(cfg.data), kind=kind)
    except TypeError as error:
        raise InputError(f"data={cfg.data.get('name')}: {error}") from None
    for split in splits:
        images = data.images(split)
        if images.skipped or images.cut:
            print(f"{split}: {images.skipped} boxes of no area skipped, {images.cut} cut at the edge of their image")
    return data


def write_scores(
    folder: Path, net: nn.Module, data: DetectionData, scores: Mapping[str, Mapping], results: list[dict[str, Any]]
) -> None:
    """Write COCO's numbers as JSON, table and picture, and the results in COCO's format; print the table."""
    rows = [
        {"": kind, **{name: None if value is None else 100 * value for name, value in numbers.items()}}
        for kind, numbers in scores.items()
    ]
    write_json(folder / "metrics.json", {"arch": net.arch, "data": data.name, **scores})
    for row, kind in zip(rows, scores, strict=True):
        write_json(folder / f"results_{kind}.json", results_for(results, kind))
        tables.write_table(folder / f"{kind}.md", [row])
        tables.print_table([row], f"{net.arch} on {data.name}, {kind}, %")
    panels = {
        f"{kind}, %": {k: v for k, v in row.items() if v is not None and k}
        for kind, row in zip(scores, rows, strict=True)
    }
    pictures.bar_picture(folder / "picture.png", panels, f"{net.arch} on {data.name}")
    kinds = ", ".join(f"results_{kind}.json, {kind}.md" for kind in scores)
    print(f"written to {folder}/: config.yaml, metrics.json, picture.png, {kinds}")
