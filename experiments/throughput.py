"""How fast compressed networks are beside the dense one, and how much of their MACs' promise they keep."""

import copy
from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.progress import track
from torch import Tensor, nn

import norton
from norton.checkpoints.files import holds_detector, read
from norton.cli import opening, program, tables
from norton.cli.pictures import COLOURS, save_figure
from norton.cli.settings import check_whole, find_device, plain
from norton.common.files import write_json
from norton.deployment.comparing import check_latency_mode, deploy_alike
from norton.measure.latency import latencies, peak_memory
from norton.measure.machine import describe_machine
from norton.models import NETWORKS
from norton.models.foreign import is_path

DETECTIONS = 10  # what an image of everyday things holds


@program.script("throughput")
def main(cfg: DictConfig) -> None:
    program.check_folder(cfg)
    check_settings(cfg)
    device = find_device(cfg.device)
    nets = open_networks(cfg)
    detectors = is_detector(next(iter(nets.values())))
    sizes = plain(cfg.image_sizes) or [own_size(next(iter(nets.values())))]
    batch_sizes = plain(cfg.batch_sizes) or ([1, 4] if detectors else [1, 8, 32])
    points = []
    for size, batch_size in track(list(product(sizes, batch_sizes)), "measure", transient=True):
        resized = {name: prepared(net, size, cfg) for name, net in nets.items()}
        try:
            batch = pictures(detectors, size, batch_size, cfg.seed).to(device)
            points += measure(resized, batch, cfg.repeats, cfg.latency)
        except RuntimeError as error:  # torch's word for too little memory
            if "memory" not in str(error):
                raise
            print(f"{size}×{size}, batch {batch_size}: left out, there is not enough memory")
    if not points:
        raise norton.InputError("there is not enough memory for any of the batches; choose smaller ones")

    folder = program.open_folder(cfg)
    arch = next(iter(nets.values())).arch
    write_json(folder / "metrics.json", {"arch": arch, "machine": describe_machine(device), "points": points})
    rows = [row(point) for point in points]
    tables.write_table(folder / "table.md", rows)
    title = f"{arch}, {describe_machine(device)}"
    picture(folder / "picture.png", points, title)
    tables.print_table(rows, title)
    for line in verdicts(points):
        print(line)
    print(f"written to {folder}/: config.yaml, metrics.json, table.md, picture.png")


def check_settings(cfg: DictConfig) -> None:
    check_latency_mode(cfg.latency)
    check_whole(cfg, "repeats", 1)
    check_whole(cfg, "seed", 0)
    for name, least in (("proposals", 1), ("detections", 0)):
        if cfg[name] is not None:
            check_whole(cfg, name, least)
    for name in ("image_sizes", "batch_sizes"):
        values = plain(cfg[name])
        good = values is None or (isinstance(values, list) and values and all(type(v) is int and v > 0 for v in values))
        if not good:
            raise norton.InputError(f"{name} is {values!r}; it must be a list of whole numbers of at least 1")


# The networks


def open_networks(cfg: DictConfig) -> dict[str, nn.Module]:
    """Name → network, the one that others are compared with first."""
    if cfg.model.arch is not None:
        return random_networks(cfg)
    if cfg.checkpoint is None:
        raise norton.InputError("no network: give checkpoint=FILE, or model=NAME for random weights")
    given = plain(cfg.compressed) or []
    paths = [str(path) for path in (cfg.checkpoint, *([given] if isinstance(given, str) else given))]
    nets = {name: open_file(path, cfg) for name, path in zip(tables.labels(paths), paths, strict=True)}
    (first, net), *others = nets.items()
    for name, other in others:
        if other.arch != net.arch:
            raise norton.InputError(f"{name} is a {other.arch}, {first} a {net.arch}; compare networks of one kind")
    return nets


def random_networks(cfg: DictConfig) -> dict[str, nn.Module]:
    """The dense network, and that at the rank and rates of the config where there are any."""
    rank, rates = plain(cfg.rank), plain(cfg.compress_rate)
    torch.manual_seed(cfg.seed)
    if cfg.model.arch in NETWORKS or is_path(cfg.model.arch):
        nets = {"dense": opening.build_model(cfg)}
        if rank or rates:
            nets["compressed"] = opening.build_model(cfg, rank or 0, rates)
        return nets
    import detection  # torchvision's detectors take over a second to import

    backbones = {"dense": norton.build("resnet_50")}
    if rank or rates:
        backbones["compressed"] = norton.build("resnet_50", rank or 0, rates)
    return {
        name: detection.build_detector(cfg.model.arch, backbone, cfg.model.num_classes)
        for name, backbone in backbones.items()
    }


def open_file(path: str, cfg: DictConfig) -> nn.Module:
    """The classifier or detector of a checkpoint."""
    if not holds_detector(read(path)):
        return norton.load(path, strict=opening.is_strict(cfg))
    import detection

    return detection.load_detector(path)


def is_detector(net: nn.Module) -> bool:
    return hasattr(net, "roi_heads")


def own_size(net: nn.Module) -> int:
    return net.transform.min_size[-1] if is_detector(net) else net.input_size[-1]


def prepared(net: nn.Module, size: int, cfg: DictConfig) -> nn.Module:
    """A detector that takes images of this size as they are, and looks at the stated numbers of boxes."""
    if not is_detector(net):
        return net
    net = copy.deepcopy(net)
    net.transform.min_size, net.transform.max_size = (size,), size
    from detection.counting import PUBLISHED_PROPOSALS

    # With random weights the numbers would be luck, other for each network, and decide what is measured.
    random = cfg.model.arch is not None
    proposals = cfg.proposals if cfg.proposals is not None or not random else PUBLISHED_PROPOSALS
    detections = cfg.detections
    if detections is None and random:  # only masks and keypoints are computed for detections
        detections = DETECTIONS if net.roi_heads.has_mask() or net.roi_heads.has_keypoint() else 0
    if proposals is not None:
        net.rpn._pre_nms_top_n["testing"] = net.rpn._post_nms_top_n["testing"] = proposals
        net.rpn.nms_thresh, net.rpn.min_size = 1.0, -1.0  # boxes stay that cover each other, or have no area
    if detections is not None:
        net.roi_heads.score_thresh = -1.0 if detections else 1.0  # all boxes score more, or none
        net.roi_heads.nms_thresh = 1.0
        net.roi_heads.detections_per_img = detections
    return net


def pictures(detectors: bool, size: int, count: int, seed: int) -> Tensor:
    """A batch (count, 3, size, size): for detectors photographs with digits, for what they cost depends on them."""
    if not detectors:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    from detection.scenes import scenes

    return torch.stack([scene.image for scene in islice(scenes("test", count, size, seed), count)]) / 255


# The measurements


def measure(nets: Mapping[str, nn.Module], batch: Tensor, repeats: int, mode: str = "deployed") -> list[dict[str, Any]]:
    """A record per network: time, memory and MACs of a batch, and speed-up and MACs ratio to the first network.

    mode: how networks are timed, see `norton.deployment.comparing.deploy_alike`.
    """
    costs = {name: cost_of(net, batch) for name, net in nets.items()}
    ready = deployed(nets, batch, mode)
    times = latencies(ready, batch, repeats=repeats)
    points: list[dict[str, Any]] = []
    for name, net in ready.items():
        time = times[name]
        point = {"network": name, "size": batch.shape[-1], "batch": len(batch), "ms": time.milliseconds}
        point |= {"quartiles_ms": time.quartiles, "images_per_second": 1000 * len(batch) / time.milliseconds}
        point |= {"form": time.form, "peak_bytes": peak_memory(net, batch, time.form), **costs[name]}
        first = (points or [point])[0]
        point |= {"macs_ratio": first["macs"] / point["macs"], "speedup": first["ms"] / point["ms"]}
        points.append(point)
    return points


def deployed(nets: Mapping[str, nn.Module], batch: Tensor, mode: str) -> dict[str, nn.Module]:
    if not is_detector(next(iter(nets.values()))):
        return deploy_alike(nets, batch, mode)
    from detection import deploy_detector

    return deploy_alike(nets, batch, mode, deploy=deploy_detector)


def cost_of(net: nn.Module, batch: Tensor) -> dict[str, Any]:
    """MACs for one image of the batch; of a detector at the boxes that it looks at in this batch, which it names."""
    if not is_detector(net):
        return {"macs": norton.complexity(net, tuple(batch.shape[1:])).macs}
    from detection.counting import boxes_looked_at, detector_complexity

    work = boxes_looked_at(copy.deepcopy(net).eval().to(batch.device), batch)
    cost = detector_complexity(net, **work)
    return {"macs": cost.macs, "proposals": cost.proposals, "detections": cost.detections}


# What people see


def row(point: Mapping[str, Any]) -> dict[str, Any]:
    low, high = point["quartiles_ms"]
    boxes = {"proposals + detections": f"{point['proposals']} + {point['detections']}"} if "proposals" in point else {}
    return {
        "network": point["network"],
        "size": point["size"],
        "batch": point["batch"],
        "ms (middle half)": f"{point['ms']:.1f} ({low:.1f} to {high:.1f})",
        "images / s": point["images_per_second"],
        "peak MB": point["peak_bytes"] / 1e6,
        **boxes,
        "MACs": tables.millions(point["macs"]),
        "MACs ratio": point["macs_ratio"],
        "speed-up": point["speedup"],
        "computed as": point["form"],
    }


def verdicts(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per compressed network and image size; it says so where fewer MACs are not faster."""
    lines = []
    for name, size in dict.fromkeys((point["network"], point["size"]) for point in points[1:]):
        mine = [point for point in points if (point["network"], point["size"]) == (name, size)]
        if name == points[0]["network"]:
            continue
        speeds = ", ".join(f"{point['speedup']:.2f} at batch {point['batch']}" for point in mine)
        slow = [str(point["batch"]) for point in mine if point["speedup"] <= 1 < point["macs_ratio"]]
        line = f"{name}, {size}×{size}: {mine[0]['macs_ratio']:.2f} times fewer MACs; times as fast: {speeds}"
        lines.append(line + (f". Fewer MACs are NOT faster here at batch {', '.join(slow)}" if slow else ""))
    return lines


def picture(path: Path, points: Sequence[Mapping[str, Any]], title: str) -> None:
    """Per image size: speed-up against the MACs ratio, below it images per second against the batch size."""
    from matplotlib.figure import Figure

    sizes = list(dict.fromkeys(point["size"] for point in points))
    names = list(dict.fromkeys(point["network"] for point in points))
    figure = Figure(figsize=(1.5 + 4.2 * len(sizes), 7.5), layout="constrained")
    axes = figure.subplots(2, len(sizes), squeeze=False)
    most = 1.3 * max(max(point["macs_ratio"], point["speedup"]) for point in points)
    least = 0.8 * min(point["speedup"] for point in points)
    for column, size in enumerate(sizes):
        upper, lower = axes[:, column]
        upper.plot([1, most], [1, most], color="#8c8c8c", linestyle="--", label="as the MACs promise")
        upper.axhline(1, color="#c44e52", linewidth=1, label="not faster")
        for name, colour in zip(names, COLOURS, strict=False):
            mine = [point for point in points if (point["network"], point["size"]) == (name, size)]
            if name != names[0]:
                upper.scatter([p["macs_ratio"] for p in mine], [p["speedup"] for p in mine], color=colour, zorder=3)
                for point in mine:
                    place = {"xytext": (5, -3), "textcoords": "offset points", "fontsize": 7}
                    upper.annotate(f"{point['batch']}", (point["macs_ratio"], point["speedup"]), **place)
            xs, ys = zip(*((point["batch"], point["images_per_second"]) for point in mine), strict=True)
            lower.plot(xs, ys, marker="o", color=colour, label=name)
        upper.set(title=f"{size}×{size}", xlabel="times fewer MACs", ylabel="times as fast (number: batch size)")
        upper.set_xscale("log", base=2)
        upper.set_yscale("log", base=2)
        upper.set(xlim=(0.9, most), ylim=(least, most))
        for axis in (upper.xaxis, upper.yaxis):
            axis.set_major_formatter("{x:g}")
        lower.set(xlabel="batch size", ylabel="images per second", ylim=(0, None))
        lower.set_xscale("log", base=2)
        lower.set_xticks(xs, [str(x) for x in xs])
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            axis.legend(fontsize=7)
    save_figure(path, figure, title)


if __name__ == "__main__":
    main()
