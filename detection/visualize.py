"""Draw what detectors find, dense beside compressed, with the frames per second of each."""

import io
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image
from rich.progress import track
from torch import Tensor, nn

import norton
from detection.checkpoints import load_detector
from detection.counting import boxes_looked_at, detector_complexity
from detection.data import LAYOUTS, ROOTS
from detection.deployment import deploy_detector
from detection.drawing import draw, side_by_side, stacked, titled
from detection.frames import Frame, frame_rate, frames, is_video, write_video
from detection.scenes import write_scenes
from norton.cli import program, tables
from norton.cli.settings import check_whole, find_device, plain
from norton.common.checks import is_number
from norton.common.files import write_json, write_whole
from norton.deployment.comparing import check_latency_mode, deploy_alike
from norton.graph.layers import FORMS, set_form_
from norton.measure.latency import latencies
from norton.measure.machine import describe_machine

SHOWN = 4  # images in picture.png
SCENES = 8  # of the test images, where no others are given


@program.script("detection_visualize")
def main(cfg: DictConfig) -> None:
    check_settings(cfg)
    device = find_device(cfg.device)
    nets = {name: net.to(device) for name, net in open_detectors(cfg).items()}
    path, limit = open_images(cfg)
    timed = [frame.image.to(device) / 255 for frame in frames(path, min(cfg.timed_images, limit or cfg.timed_images))]
    ready = deploy_alike(nets, timed[0][None], cfg.latency, deploy=deploy_detector, progress=True)
    measured = measure(nets, ready, timed, cfg.repeats)
    for name, net in ready.items():
        if measured[name]["form"] in FORMS:
            set_form_(net, measured[name]["form"])
    folder = program.open_folder(cfg)
    drawn = draw_all(ready, measured, frames(path, limit), cfg.threshold, device)
    written = write_pictures(folder, drawn, path, limit)
    write_json(folder / "metrics.json", {"images": str(path), "device": str(device), "networks": measured})
    rows = table(measured)
    tables.write_table(folder / "table.md", rows)
    tables.print_table(rows, f"one image at a time, {describe_machine(device)}")
    for name in list(measured)[1:]:
        dense, small = next(iter(measured.values())), measured[name]
        print(tables.speed_sentence(name, dense["macs"] / small["macs"], dense["ms"] / small["ms"]))
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, {', '.join(written)}")


def check_settings(cfg: DictConfig) -> None:
    check_latency_mode(cfg.latency)
    if cfg.checkpoint is None:
        raise norton.InputError("no checkpoint: give checkpoint=FILE, a detector, and compressed=FILE beside it")
    for name in ("timed_images", "repeats", "limit"):
        if cfg[name] is not None:
            check_whole(cfg, name, 1)
    if not is_number(cfg.threshold) or not 0 <= cfg.threshold <= 1:
        raise norton.InputError(f"threshold is {cfg.threshold!r}; it must be a number between 0 and 1")


def open_detectors(cfg: DictConfig) -> dict[str, nn.Module]:
    """Name → detector, that of `checkpoint=` first."""
    given = plain(cfg.compressed) or []
    given = [given] if isinstance(given, str) else given
    options = plain(cfg.options)
    paths = [str(path) for path in (cfg.checkpoint, *given)]
    names = tables.labels(paths)
    nets = [load_detector(path, **options) for path in paths]
    if len(nets) == 2 and not nets[0].plan and nets[1].plan:
        names = ["dense", "compressed"]
    return dict(zip(names, nets, strict=True))


def open_images(cfg: DictConfig) -> tuple[Path, int | None]:
    """The path of what is to be drawn on, and how much of it."""
    if cfg.images is not None:
        if not Path(str(cfg.images)).exists():
            raise norton.InputError(f"images: nothing at {cfg.images}; give an image, a folder of images, or a video")
        return Path(str(cfg.images)), cfg.limit
    root = ROOTS["scenes"]
    folder = root / LAYOUTS["scenes"]["test"][0]
    if not folder.is_dir():
        write_scenes(root, progress=True)
    return folder, cfg.limit or SCENES


def measure(
    nets: Mapping[str, nn.Module], ready: Mapping[str, nn.Module], images: list[Tensor], repeats: int
) -> dict[str, dict[str, Any]]:
    """Speed of each detector, one image at a time, and what it costs at the boxes that it looks at in the first.

    ready: the same detectors, as they are timed.
    """
    times = latencies(ready, *(image[None] for image in images), repeats=repeats)
    found = {}
    for name, net in nets.items():
        work = boxes_looked_at(net, images[0][None])
        cost = detector_complexity(net, **work)
        speed = {"fps": 1000 / times[name].milliseconds, "ms": times[name].milliseconds}
        about = {"quartiles_ms": times[name].quartiles, "form": times[name].form, "timed": repeats}
        found[name] = {**speed, **about, "macs": cost.macs, "params": cost.params, **work}
    return found


def draw_all(
    nets: Mapping[str, nn.Module],
    measured: Mapping[str, Mapping],
    images: Iterator[Frame],
    threshold: float,
    device: torch.device,
) -> Iterator[Frame]:
    """Each image as all detectors see it, side by side."""
    titles = {name: title(name, measured) for name in nets}
    for frame in images:
        with torch.inference_mode():
            batch = frame.image.to(device)[None] / 255
            views = [
                titled(draw(frame.image, net(batch)[0], net.recipe["categories"], threshold), titles[name])
                for name, net in nets.items()
            ]
        yield Frame(frame.name, side_by_side(views))


def title(name: str, measured: Mapping[str, Mapping]) -> str:
    first = next(iter(measured.values()))
    removed = norton.measure.counting.percent_removed(measured[name]["macs"], first["macs"])
    cost = f", {abs(removed):.0f}% {'fewer' if removed > 0 else 'more'} MACs" if measured[name] is not first else ""
    return f"{name}{cost}\n{measured[name]['fps']:.1f} frames per second"


def write_pictures(folder: Path, drawn: Iterator[Frame], path: Path, limit: int | None) -> list[str]:
    """Write a video, or a picture per image, and one picture of the first few; returns what was written."""
    first: list[Tensor] = []

    def watched() -> Iterator[Frame]:
        for frame in track(drawn, "draw", total=None if is_video(path) else limit, transient=True):
            if len(first) < SHOWN:
                first.append(frame.image)
            yield frame

    if is_video(path):
        written = [write_video(folder / "video.mp4", (frame.image for frame in watched()), frame_rate(path)).name]
    else:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".images-") as temporary:
            for frame in watched():
                write_png(free_name(Path(temporary), frame.name), frame.image)
            shutil.rmtree(folder / "images", ignore_errors=True)
            shutil.copytree(temporary, folder / "images")
        written = ["images/"]
    write_png(folder / "picture.png", stacked(first))
    return [*written, "picture.png"]


def free_name(folder: Path, name: str) -> Path:
    """Where the picture of an image goes; a.jpg and a.png get one each."""
    path = folder / f"{Path(name).stem}.png"
    return folder / f"{name}.png" if path.exists() else path


def write_png(path: Path, picture: Tensor) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "png")
    write_whole(path, buffer.getvalue())


def table(measured: Mapping[str, Mapping]) -> list[dict[str, Any]]:
    return [
        {
            "detector": name,
            "frames / s": found["fps"],
            "ms (middle half)": "{:.1f} ({:.1f} to {:.1f})".format(found["ms"], *found["quartiles_ms"]),
            "MACs": tables.millions(found["macs"]),
            "params": tables.millions(found["params"]),
            "computed as": found["form"],
        }
        for name, found in measured.items()
    ]


if __name__ == "__main__":
    main()
