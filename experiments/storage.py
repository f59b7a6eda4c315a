"""What a network takes on disk: its weights shared by clustering and compressed, beside the accuracy that is left."""

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig
from torch import nn

import norton
from norton.checkpoints.claims import SCORES
from norton.checkpoints.sharing import Bits, layer_bits, layer_weights
from norton.cli import opening, pictures, program, steps, tables
from norton.cli.chain import lineage_record
from norton.cli.hints import evaluation
from norton.cli.settings import check_settings, plain
from norton.common.checks import check_boolean
from norton.common.files import write_json

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData

LOSSLESS = "lossless"  # the file of the network as it is
BITS = [8, 6, 5, 4, 3, 2]


@program.script("storage")
def main(cfg: DictConfig) -> None:
    asked = check(cfg)
    net, origin = opening.open_network(cfg)
    for bits in asked.values():  # bad ones show here, before anything is computed
        if not layer_bits(net, bits):
            raise norton.InputError(f"bits={bits} shares the weights of no layer; give at least one 1 to 8 bits")
    data = None
    if cfg.accuracy or cfg.calibration.batchnorm:
        opening.choose_data(cfg, net, opening.about_of(net, origin))
        data = opening.open_data(cfg, net)
    program.check_folder(cfg)  # only now: the data that are chosen belong to its config
    before = measure(net, cfg, data)
    nets, files = {LOSSLESS: net}, {LOSSLESS: {"bits": None, "error": 0.0, **before}}
    for number, (name, bits) in enumerate(asked.items(), start=1):
        print(f"{number} of {len(asked)}: {bits_text(bits)}", flush=True)
        nets[name] = calibrated(norton.share_weights(net, bits), net, cfg, data)
        files[name] = {"bits": bits, "error": relative_weight_error(net, nets[name]), **measure(nets[name], cfg, data)}

    folder = program.open_folder(cfg)
    for name, found in files.items():
        found["bytes"] = write(nets[name], folder / f"{name}.pt", found, origin, cfg)
    dense = opening.dense_form(net)
    sizes = {"dense": plain_bytes(dense, origin), "as given": plain_bytes(net, origin)}
    score = opening.score_of(data)
    title, rows = f"{net.arch}: weights shared and compressed", table(files, sizes, before.get(score[0]), score)
    write_json(folder / "metrics.json", {"arch": net.arch, **before, "plain_bytes": sizes, "files": files})
    tables.write_table(folder / "table.md", rows)
    picture(folder / "picture.png", files, sizes["as given"], title, score)
    tables.print_table(rows, title)
    written = ", ".join(f"{name}.pt" for name in files)
    print(f"written to {folder}/: {written}, config.yaml, metrics.json, table.md, picture.png")
    print(f"next: {evaluation(net, folder / f'{next(iter(asked))}.pt')}")


def check(cfg: DictConfig) -> dict[str, Bits]:
    """Name of a file → its bits.  Raises InputError for settings that need no network to be found bad."""
    check_settings(cfg)
    check_boolean("accuracy", cfg.accuracy)
    asked = BITS if cfg.bits is None else plain(cfg.bits)
    asked = asked if isinstance(asked, list) else [asked]
    names = [f"bits_{b}" if not isinstance(b, Mapping) else f"patterns_{i}" for i, b in enumerate(asked, start=1)]
    if not asked or len(set(names)) < len(names):
        raise norton.InputError(f"bits is {asked}; give a list of at least one, none of them twice, e.g. bits=[8,5]")
    return dict(zip(names, asked, strict=True))


def calibrated(small: nn.Module, net: nn.Module, cfg: DictConfig, data: "ClassificationData | None") -> nn.Module:
    """BatchNorm left or mended as configured, in place; half precision would not meet the images."""
    kind = next(small.parameters()).dtype
    steps.calibrate_(small.float(), copy.deepcopy(net).float(), cfg, data)
    return small.to(kind)


def measure(net: nn.Module, cfg: DictConfig, data: "ClassificationData | None") -> dict[str, float]:
    """The scores on the test split in percent, where they are asked for."""
    if not cfg.accuracy:
        return {}
    return steps.evaluate(copy.deepcopy(net).float(), cfg, data)


@torch.no_grad()
def relative_weight_error(net: nn.Module, small: nn.Module) -> float:
    """‖W - Ŵ‖² / ‖W‖² over the weights of all layers together."""
    before, after = layer_weights(net), layer_weights(small)
    pairs = [(a.double(), b.double()) for name in before for a, b in zip(before[name], after[name], strict=True)]
    energy = sum(a.square().sum().item() for a, _ in pairs)
    return sum((a - b).square().sum().item() for a, b in pairs) / energy if energy else 0.0


def write(net: nn.Module, path: Path, found: Mapping[str, Any], origin: Mapping[str, Any], cfg: DictConfig) -> int:
    """Save a network, compressed, with what was measured of it; returns the bytes of the file."""
    cost = norton.complexity(net)
    metrics = {key: found[key] for scores in SCORES.values() for key in scores if key in found}
    metrics |= {"data": cfg.data.name} if metrics else opening.inherited(origin)
    metrics |= {"macs": cost.macs, "params": cost.params}
    lineage = list(origin["lineage"])
    if found["bits"] is not None:
        lineage.append({**lineage_record("share", cfg, ("calibration",)), "bits": found["bits"]})
    return norton.save(net, path, metrics=metrics, lineage=lineage, compress=True).stat().st_size


def plain_bytes(net: nn.Module, origin: Mapping[str, Any]) -> int:
    """The bytes of a network's checkpoint as `norton.save` writes it without compression."""
    with TemporaryDirectory() as folder:
        return norton.save(net, Path(folder) / "model.pt", **origin).stat().st_size


def bits_text(bits: Bits | None) -> str:
    """What is asked for in a few words; None: the weights as they are."""
    if bits is None:
        return "as given, compressed"
    if isinstance(bits, Mapping):
        return ", ".join(f"{pattern}: {count}" for pattern, count in bits.items())
    return f"{bits} bits"


def table(
    files: Mapping[str, dict], sizes: Mapping[str, int], before: float | None, score: tuple[str, str]
) -> list[dict]:
    """A row per file, below those of the plain files it is compared with.

    before: what the network as given scores.  score: its name in files, and in tables.
    """
    name, label = score
    rows = [{"weights": "as given, plain", "bytes": sizes["as given"], "error": None, label: before}]
    if sizes["dense"] != sizes["as given"]:
        rows = [{"weights": "dense, plain", "bytes": sizes["dense"], "error": None, label: None}, *rows]
    for found in files.values():
        error = f"{found['error']:.5f}"
        text = bits_text(found["bits"])
        rows.append({"weights": text, "bytes": found["bytes"], "error": error, label: found.get(name)})
    for row in rows:
        change = None if None in (before, row[label]) else f"{row[label] - before:+.2f}"
        size = row["bytes"]
        row |= {"bytes": f"{size:,}", "times smaller": sizes["dense"] / size, "change": change}
    columns = ["weights", "bytes", "times smaller", "error", *[label, "change"] * (before is not None)]
    return [{key: row[key] for key in columns} for row in rows]


def picture(path: Path, files: Mapping[str, dict], plain: int, title: str, score: tuple[str, str]) -> None:
    """The test score against the size of the file; without scores, the error of the weights."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    whole = files[LOSSLESS]
    quantity = score[0] if score[0] in whole else "error"
    shared = [(found["bytes"], found[quantity], found["bits"]) for found in files.values() if found is not whole]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    sizes, heights, labels = zip(*shared, strict=True)
    axis.plot(sizes, heights, "o-", color=pictures.COLOURS[0], label="shared and compressed, with its bits")
    for size, height, bits in zip(sizes, heights, labels, strict=True):
        text = bits_text(bits).removesuffix(" bits")
        axis.annotate(text, (size, height), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center")
    axis.plot(whole["bytes"], whole[quantity], "D", color=pictures.COLOURS[1], label="as given, compressed")
    axis.plot(plain, whole[quantity], "s", color=pictures.COLOURS[7], label="as given, plain")
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda size, _: f"{size / 1e3:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.margins(x=0.08, y=0.1)
    axis.set_xlabel("file, kB", fontsize=9)
    axis.set_ylabel("relative error of the weights" if quantity == "error" else f"test {score[1]}", fontsize=9)
    axis.legend(fontsize=8, loc="upper right" if quantity == "error" else "lower right")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    pictures.save_figure(path, figure, title)


if __name__ == "__main__":
    main()
