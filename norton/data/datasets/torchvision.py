"""`torchvision/NAME`: any of torchvision's datasets that tell classes apart, e.g. `torchvision/cifar100`."""

import inspect
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from norton.common.checks import check_boolean
from norton.common.errors import InputError, first_line
from norton.data.assembling import Presentation, assemble, presented
from norton.data.splits import DATASETS, Splits
from norton.data.wrapping import DatasetPictures, classes_of

# How each tells its splits: split → arguments of its constructor.  What is missing is drawn from `train`.
Ways = dict[str, dict[str, Any]]
_FLAG: Ways = {"train": {"train": True}, "test": {"train": False}}
_TWO: Ways = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: Ways = {**_TWO, "val": {"split": "val"}}
_WHOLE: Ways = {"train": {}}
WAYS: dict[str, Ways] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "QMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("FER2013", "Food101", "GTSRB", "STL10", "StanfordCars", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    **dict.fromkeys(("Caltech101", "Caltech256", "EuroSAT", "SEMEION", "SUN397"), _WHOLE),
    "CLEVRClassification": {"train": {"split": "train"}, "test": {"split": "val"}},  # its test labels are not public
    "Country211": {**_TWO, "val": {"split": "valid"}},
    "EMNIST": {split: {"split": "balanced", **way} for split, way in _FLAG.items()},
    "Imagenette": {"train": {"split": "train"}, "test": {"split": "val"}},
    "OxfordIIITPet": {"train": {"split": "trainval"}, "test": {"split": "test"}},
    "Places365": {
        "train": {"split": "train-standard", "small": True},
        "test": {"split": "val", "small": True},  # likewise
    },
}
# What constructors raise where files are missing, damaged, or cannot be fetched.
FAILURES = (RuntimeError, OSError, ImportError, EOFError, pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile)


@DATASETS.register("torchvision")
@presented
def torchvision(
    root: Path,
    seed: int,
    how: Presentation,
    dataset: str,
    download: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """The pictures of one of torchvision's datasets, prepared and augmented as one's own.

    dataset: its name, in any case, with or without underscores.  download: fetch what is missing.  options: more
    arguments of its constructor.
    """
    check_boolean(f"data torchvision/{dataset}: download", download)
    name = find(dataset)
    data = f"torchvision/{dataset}"
    made = {split: make(data, name, root, {**way, **(options or {})}, download) for split, way in WAYS[name].items()}
    classes = classes_of(data, made["train"])
    sources = {split: DatasetPictures(data, one, classes) for split, one in made.items()}
    return assemble(data, sources, classes, seed, how)


def find(asked: str) -> str:
    """The class of torchvision that a name means.  Raises InputError for those that are not known here."""
    plain = str(asked).lower().replace("_", "").replace("-", "")
    for name in WAYS:
        if name.lower() == plain:
            return name
    raise InputError(
        f"data torchvision: {asked!r} is none of torchvision's datasets of one class per image; choose data.name "
        f"out of {', '.join(sorted(WAYS))}"
    )


def make(data: str, name: str, root: Path, arguments: Mapping[str, Any], download: bool) -> Any:
    """One split.  Raises InputError where its files are missing and not to be fetched, or cannot be."""
    from torchvision import datasets

    kind = getattr(datasets, name)
    known = inspect.signature(kind).parameters
    fetches = {"download": download} if {"download", "kwargs"} & set(known) else {}
    if download and not fetches:
        raise InputError(f"data {data}: torchvision cannot fetch it; put its files into {root.absolute()}")
    try:
        return kind(root, **arguments, **fetches)
    except FAILURES as error:
        raise InputError(_failed(data, kind, root, error, download)) from None
    except (TypeError, ValueError) as error:
        raise InputError(f"data {data}: {name}({dict(arguments)}): {first_line(error)}; mend data.options") from None


def _failed(data: str, kind: type, root: Path, error: Exception, download: bool) -> str:
    advice = "fetch it with data.download=true, or set data.root to the folder that has it"
    if isinstance(error, ImportError) or "install" in str(error):
        advice = "install that package"
    elif download:
        url = getattr(kind, "url", getattr(kind, "_URL", None))
        source = f"from {url} " if isinstance(url, str) else ""
        advice = f"see whether the network is there, or put its files {source}into data.root and leave download out"
    return f"data {data}: looked in {root.absolute()}: {' '.join(str(error).split())[:300]}; {advice}"
