"""Calibration images as the settings ask for them: what layers are fitted to, and what BatchNorm is decided by."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig
from torch import Tensor, nn

from norton.cli.opening import Data, known
from norton.common.errors import InputError, warn

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData
    from norton.data.normalising import Normalisation

KEPT = 1 / 5  # of few images, to decide by


def calibration_images(net: nn.Module, cfg: DictConfig, data: Data) -> Tensor | None:
    """Unlabelled images, transformed as for evaluation: of a folder, or training images; None where there are none.

    data: also says how images of a folder are normalised.
    """
    c, dtype = cfg.calibration, next(net.parameters()).dtype
    if c.folder is not None:
        fitted, _ = _of_folder(cfg, said=True)
        images = _pictures(net, cfg, data, fitted)
        if len(images) < 2:
            raise InputError(f"calibration.folder: {c.folder} holds {len(images)} image; give a few hundred")
        return images.to(dtype)
    if c.images is None:
        return None
    return known(data).calibration_images(at_hand(cfg, known(data))).to(dtype)


def images_for_batchnorm(net: nn.Module, cfg: DictConfig, data: Data) -> tuple[Tensor, Tensor]:
    """Images to estimate statistics from, augmented as for training where they come of `data`, and others to judge by.

    Those to judge by were used for nothing else; of fewer images than ten, they are the calibration images themselves,
    which is said.
    """
    images = calibration_images(net, cfg, data)
    assert images is not None
    if cfg.calibration.folder is not None:
        fitted, judging = _of_folder(cfg)
        others = _pictures(net, cfg, data, fitted, judging) if judging else images[:0]
        augmented = images
    else:
        data, count = known(data), len(images)
        others = data.calibration_images(count + _shares(cfg, len(data.splits.calibration))[1])[count:]
        augmented = data.images("train", count).to(images.dtype)
    if len(others) < 2:
        warn(
            f"BatchNorm is decided by the {len(images)} images that layers were fitted to: there are too few for others"
        )
        return augmented, images
    return augmented, others.to(images.dtype)


def at_hand(cfg: DictConfig, data: "ClassificationData") -> int:
    """How many training images layers are fitted to: so many as are asked for, or can be had, which is said."""
    found = len(data.splits.calibration)
    fitted, _ = _shares(cfg, found)
    _say_fewer(f"data={data.name} has {found} training images", cfg, found, fitted)
    return fitted


def normalisation_of(data: "ClassificationData") -> "Normalisation":
    """How images of the data are normalised, or InputError where nothing says it."""
    if data.normalisation is None:
        raise InputError(f"nothing says how the images of data={data.name} are normalised; give data.mean and data.std")
    return data.normalisation


def _shares(cfg: DictConfig, found: int) -> tuple[int, int]:
    """Of so many images, how many layers are fitted to, and how many others BatchNorm is decided by."""
    c = cfg.calibration
    wanted = c.get("held_out", 0) if c.get("batchnorm") == "auto" else 0
    kept = min(wanted, int(KEPT * found))
    fitted = min(found if c.images is None else c.images, found - kept * (kept > 1))
    return fitted, min(wanted, found - fitted)


def _say_fewer(there: str, cfg: DictConfig, found: int, fitted: int) -> None:
    """Warn where layers are fitted to fewer images than are asked for."""
    asked = cfg.calibration.images
    if asked is not None and fitted < asked:
        kept = f", of which {found - fitted} are kept to decide BatchNorm by" if fitted < found else ""
        warn(f"{there}{kept}; calibration.images={asked} asked for")


def _of_folder(cfg: DictConfig, said: bool = False) -> tuple[int, int]:
    """The `_shares` of `calibration.folder`; said: warn where there are fewer images than asked for."""
    from norton.data.pictures import files_of_folder  # torchvision's transforms take a second to import

    found = len(files_of_folder(cfg.calibration.folder))
    fitted, judging = _shares(cfg, found)
    if said:
        _say_fewer(f"{cfg.calibration.folder} holds {found} images", cfg, found, fitted)
    return fitted, judging


def _pictures(net: nn.Module, cfg: DictConfig, data: Data, fitted: int, judging: int | None = None) -> Tensor:
    """So many images of `calibration.folder`; judging: so many others instead."""
    from norton.data.pictures import read_pictures

    how = normalisation_of(known(data))
    return read_pictures(cfg.calibration.folder, net.input_size, how, fitted, known(data).name, others=judging)
