"""`module`: whatever a function of the user's own returns as training, validation and test datasets."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset, Subset

from norton.common.errors import InputError, first_line
from norton.data.assembling import Presentation, assemble, draw, presented
from norton.data.augmenting import DEFAULT, named
from norton.data.normalising import Normalisation, normalisation
from norton.data.splits import DATASETS, Splits, stratified_order
from norton.data.wrapping import DatasetPictures, check_labels, classes_of, labels_of

RETURNS = "(train, val, test) of map-style datasets of (image, label), val and test None to be drawn; or Splits"

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@DATASETS.register("module")
@presented
def module(root: Path, seed: int, how: Presentation, module: str | None = None) -> Splits:
    """The datasets that a function returns; it is called with `root` and `seed` where it has arguments of these names.

    module: its dotted path.  Pictures (of Pillow, or uint8) are prepared and augmented as `how` says.  Float tensors
    (C, H, W) are taken as they are: their transforms are the user's, and `mean` and `std` say how they were normalised.
    """
    if module is None:
        raise InputError("data module: no function; give data.module=my.module.function")
    make = named(module, "data.module")
    found = _called(module, make, {"root": root, "seed": seed})
    if isinstance(found, Splits):
        return found
    datasets = _datasets(module, found)
    classes = _classes(module, datasets)
    first = datasets["train"][0][0]
    if isinstance(first, Tensor) and first.is_floating_point():
        return _as_they_are(datasets, classes, first, seed, how)
    sources = {split: DatasetPictures("module", one, classes) for split, one in datasets.items()}
    return assemble("module", sources, classes, seed, how)


def _called(path: str, make: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """What a user's function returns.  Raises InputError where it asks for more, and for whatever it raises."""
    known = inspect.signature(make).parameters
    missing = [name for name, one in known.items() if one.default is one.empty and one.kind not in _ANY_NUMBER]
    if missing := [name for name in missing if name not in given]:
        raise InputError(f"data.module {path} asks for {', '.join(missing)}; it is called with root and seed alone")
    try:
        return make(**{name: value for name, value in given.items() if name in known})
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"data.module {path} failed: {type(error).__name__}: {first_line(error)}; HYDRA_FULL_ERROR=1 shows where"
        ) from error


def _datasets(path: str, found: Any) -> dict[str, Any]:
    """Split → dataset, of those that were returned.  Raises InputError for anything else."""
    parts = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []
    datasets = {split: one for split, one in zip(("train", "val", "test"), parts, strict=False) if one is not None}
    if len(parts) != 3 or "train" not in datasets:
        raise InputError(f"data.module {path} returned {_kind(found)}; it must be {RETURNS}")
    for split, one in datasets.items():
        if not (hasattr(one, "__getitem__") and hasattr(one, "__len__")):
            raise InputError(f"data.module {path}: {split} is {_kind(one)}; all must be map-style datasets")
        if not len(one):
            raise InputError(f"data.module {path}: {split} has no images; return None for it to be drawn from train")
    return datasets


def _kind(found: Any) -> str:
    return f"{len(found)} things" if isinstance(found, tuple | list) else f"a {type(found).__name__}"


def _classes(path: str, datasets: dict[str, Any]) -> tuple[str, ...]:
    classes = classes_of("module", datasets["train"])
    for split, one in datasets.items():
        if getattr(one, "classes", None) and (other := classes_of("module", one)) != classes:
            raise InputError(
                f"data.module {path}: {split} has the classes {', '.join(other)}, train has {', '.join(classes)}; "
                "they must be the same"
            )
    return classes


def _as_they_are(
    datasets: dict[str, Any], classes: tuple[str, ...], first: Tensor, seed: int, how: Presentation
) -> Splits:
    """Splits of datasets that give normalised images; calibration takes the training images, the classes in turn."""
    if first.dim() != 3:
        raise InputError(f"data module: an image is {tuple(first.shape)}; it must be (channels, height, width)")
    size = [how.size] * 2 if isinstance(how.size, int) else how.size
    if (how.channels or len(first), *(size or first.shape[1:])) != tuple(first.shape):
        raise InputError(
            f"data module: its images are of (channels, height, width) {tuple(first.shape)}, where "
            f"{(how.channels or len(first), *(size or first.shape[1:]))} was asked for, or is what the network takes; "
            "change that in your function"
        )
    if how.augment not in (None, "none", DEFAULT, list(DEFAULT)):
        raise InputError("data module: augment is for pictures; its images are tensors of numbers, so do it there")
    sources = {split: _Labels(one) for split, one in datasets.items()}
    for source in sources.values():
        check_labels("module", source.labels, classes)
    drawn = draw("module", sources, seed, how)  # type: ignore[arg-type]  # labels are all that it asks for
    if not drawn:  # where they are listed class by class, the first ones would be of one class
        drawn = {"train": stratified_order(sources["train"].labels, seed)}
    parts: dict[str, Dataset] = {split: Subset(datasets["train"], part.tolist()) for split, part in drawn.items()}
    parts = {**datasets, **parts}
    return Splits(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        calibration=parts["train"],
        classes=classes,
        input_size=tuple(first.shape),
        normalisation=_said(how, len(first)),
        test_is_drawn="test" in drawn,
    )


class _Labels:
    def __init__(self, dataset: Dataset):
        self.labels = labels_of("module", dataset)


def _said(how: Presentation, channels: int) -> Normalisation | None:
    """How the user says that images were normalised."""
    if how.mean is None and how.std is None:
        return None
    if "auto" in (how.mean, how.std):
        raise InputError("data module: its images are normalised already; give mean and std as numbers, or leave them")
    return normalisation("module", how.mean, how.std, ((0.0,) * channels, (1.0,) * channels), _no_images)


def _no_images() -> Tensor:
    raise AssertionError("only auto looks at images")
