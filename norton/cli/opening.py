"""What the settings name, opened: networks, data, calibration images."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from norton.checkpoints.files import read
from norton.checkpoints.rebuilding import rebuild
from norton.cli.program import CONFIGS
from norton.cli.settings import plain
from norton.common.errors import InputError
from norton.models import build
from norton.models.foreign import is_path


def open_network(cfg: DictConfig, *, told: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The network of `checkpoint=`, or a fresh one of `model=`, and the checkpoint's metrics and lineage.

    told: rank and rates of the config describe the network in the file, rather than what to do with it.
    """
    if cfg.checkpoint is not None:
        content = read(cfg.checkpoint)
        description = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)} if told else {}
        net = rebuild(content, cfg.checkpoint, arch=cfg.model.arch, **description)
        return net, {"metrics": content.get("metrics", {}), "lineage": list(content.get("lineage", []))}
    if cfg.model.arch is None:
        raise InputError("no network: give checkpoint=FILE, or model=NAME for one with random weights")
    torch.manual_seed(cfg.seed)
    return build_model(cfg, 0, plain(cfg.model.get("compress_rate"))), {"metrics": {}, "lineage": []}


def load_file(path: str | Path, cfg: DictConfig, **told: Any) -> nn.Module:
    """The network of a file beside `checkpoint=`, of any kind or of the constructor that `model.arch=` names.

    told: what else it is expected to be, as in `norton.load`.
    """
    content = read(path)
    arch = cfg.model.arch if content.get("arch") == cfg.model.arch else None
    return rebuild(content, path, arch=arch, **told)


def build_model(cfg: DictConfig, rank=0, compress_rate=None) -> nn.Module:
    """The network of `model=`, of that rank and rates."""
    m = cfg.model
    return build(m.arch, rank, compress_rate, m.num_classes, plain(m.get("input_size")))


def dense_form(net: nn.Module) -> nn.Module:
    """The dense network that one was made from, with random weights."""
    options = {"input_size": net.input_size} if is_path(net.arch) else {}
    return build(net.arch, num_classes=net.num_classes, **options)


def inherited(origin: dict[str, Any]) -> dict[str, Any]:
    """What a compressed network keeps of the metrics of the one it came from: the data they are about."""
    return {key: value for key, value in origin["metrics"].items() if key == "data"}


def open_data(cfg: DictConfig):
    """The LightningDataModule of `data=`; its files are looked for at the first use."""
    from norton.data.datamodule import ClassificationData  # Lightning takes seconds to import

    try:
        return ClassificationData(**plain(cfg.data))
    except TypeError as error:
        raise InputError(f"data={cfg.data.get('name')}: {error}") from None


def choose_data(cfg: DictConfig, name: str) -> None:
    """Put the dataset `name` in the place of `data=auto`, in the config itself; other choices of a user stay."""
    if cfg.data.name != "auto":
        return
    known = {path.stem: path for path in sorted((CONFIGS / "data").glob("*.yaml")) if path.stem != "auto"}
    if name is None:
        raise InputError(f"nothing says which data its accuracy is about; choose data= out of {', '.join(known)}")
    if name not in known:
        choices = ", ".join(known)
        raise InputError(f"its accuracy is about {name!r}, which is none of the data here: {choices}; choose data=")
    told = {key: value for key, value in cfg.data.items() if value is not None and key != "name"}
    cfg.data = OmegaConf.merge(OmegaConf.load(known[name]), told)


def check_classes(net: nn.Module, data) -> None:
    """Raise InputError where the data have other classes than the network."""
    if getattr(net, "num_classes", data.num_classes) != data.num_classes:
        number = f"only {data.num_classes}" if data.num_classes < net.num_classes else f"{data.num_classes}"
        raise InputError(
            f"the network tells {net.num_classes} classes apart, the data {data.name} have {number}; "
            "choose another data= or data.root=, or another checkpoint="
        )


def check_latency_batch(cfg: DictConfig, data) -> None:
    """Raise InputError where the test split has too few images to measure latency with."""
    if cfg.latency_batch is not None and len(data.splits.test) < cfg.latency_batch:
        raise InputError(
            f"latency_batch is {cfg.latency_batch}; the test split of {data.name} has {len(data.splits.test)} images"
        )


def calibration_images(net: nn.Module, cfg: DictConfig, data=None) -> Tensor | None:
    """Unlabelled images, transformed as for evaluation: of a folder, or training images; None where there are none."""
    c, dtype = cfg.calibration, next(net.parameters()).dtype
    if c.folder is not None:
        from norton.data.pictures import read_pictures

        images = read_pictures(c.folder, net.input_size, cfg.data.name, c.images)
        if len(images) < 2:
            raise InputError(f"calibration.folder: {c.folder} holds {len(images)} image; give a few hundred")
        return images.to(dtype)
    if c.images is None:
        return None
    return (open_data(cfg) if data is None else data).calibration_images(c.images).to(dtype)
