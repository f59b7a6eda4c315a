"""What is deployed: the network and its dense one, the data, images for INT8."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import norton
from norton.cli import images, opening, tables
from norton.cli.data_checks import check_classes
from norton.cli.settings import plain
from norton.graph.plan import plan_of

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


@dataclass(frozen=True)
class Given:
    """One of the networks; trained: its accuracy means something."""

    name: str
    net: nn.Module
    trained: bool


def open_networks(cfg: DictConfig) -> tuple[dict[str, Given], str | None]:
    """`dense` and `network`, the latter alone where it is not compressed, and the data that it is about."""
    if cfg.checkpoint is None:
        return random_networks(cfg), None
    net, origin = opening.open_network(cfg, told=True)
    about = opening.about_of(net, origin)
    if cfg.dense is not None:
        first, second = tables.labels([cfg.dense, cfg.checkpoint])
        dense = opening.load_file(cfg.dense, cfg)
        if dense.arch != net.arch:
            raise norton.InputError(f"{cfg.dense} holds a {dense.arch}, {cfg.checkpoint} a {net.arch}; give one kind")
        return {"dense": Given(first, dense, True), "network": Given(second, net, True)}, about
    alone = {"network": Given(Path(cfg.checkpoint).stem, net, True)}
    if not plan_of(net):
        return alone, about
    torch.manual_seed(cfg.seed)
    return {"dense": Given("dense, random weights", opening.dense_form(net), False)} | alone, about


def random_networks(cfg: DictConfig) -> dict[str, Given]:
    if cfg.model.arch is None:
        raise norton.InputError("no network: give checkpoint=FILE, or model=NAME for random weights")
    torch.manual_seed(cfg.seed)
    dense, rank, rates = opening.build_model(cfg), plain(cfg.rank), plain(cfg.compress_rate)
    if not rank and not rates:
        return {"network": Given("dense", dense, False)}
    small = opening.build_model(cfg, rank or 0, rates)
    return {"dense": Given("dense", dense, False), "network": Given("compressed", small, False)}


def open_data(
    cfg: DictConfig, nets: Mapping[str, Given], about: str | None
) -> "tuple[ClassificationData | None, list[str]]":
    """The data to measure accuracy on, None where it is not; and why not, where nobody asked for that."""
    if not cfg.accuracy or not nets["network"].trained:
        return None, []
    automatic = cfg.data.name == "auto"
    try:
        opening.choose_data(cfg, nets["network"].net, about)
        data = opening.open_data(cfg, nets["network"].net)
        for given in nets.values():
            check_classes(given.net, data)
        return data, []
    except norton.InputError as error:
        if not automatic:
            raise
        return None, [f"no accuracy: {error}"]


def calibration_images(
    cfg: DictConfig, nets: Mapping[str, Given], data: "ClassificationData | None", about: str | None
) -> tuple[Tensor, list[str]]:
    """Images (N, C, H, W) for INT8 and to compare outputs on: as configured, else noise; and a word on that."""
    net = nets["network"].net
    if cfg.calibration.folder is not None:
        opening.choose_data(cfg, net, about)
        data = data or opening.open_data(cfg, net)  # whose normalisation they need
    if data is not None or cfg.calibration.folder is not None:
        return images.calibration_images(net, cfg, data), []
    said = ["INT8 is calibrated on noise, as there are no images: its times count, not its outputs"] if cfg.int8 else []
    return noise(net, cfg.calibration.images, cfg.seed), said


def noise(net: nn.Module, count: int, seed: int) -> Tensor:
    return torch.randn(count, *net.input_size, generator=torch.Generator().manual_seed(seed))


def deploy(cfg: DictConfig, role: str, given: Given, example: Tensor) -> dict[int, nn.Module]:
    """Batch size → the network deployed for it; prints the choices, all layers for the largest."""
    found: dict[int, nn.Module] = {}
    for size in sorted(set(cfg.batch_sizes), reverse=True):
        choice = cfg.choice if role == "network" and not found else None
        found[size] = norton.deploy(given.net.eval(), example[:size], choice=choice, progress=True)
        if not choice and len(found) == 1 and (rows := found[size].deployment.rows()):
            tables.print_table([{key: row[key] for key in row if key != "tried"} for row in rows], given.name)
        print(f"{given.name}, batch {size}: {found[size].deployment.sentence()}", flush=True)
    return found
