"""Map-style datasets of other libraries, or the user's, as sources of pictures: what their items and labels are."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from norton.common.checks import is_whole_number
from norton.common.errors import InputError
from norton.data.pictures import UNREADABLE, plain_picture

LABELS = ("targets", "labels", "_labels", "y")  # where datasets keep the labels of all items
MOST_LOOKED_AT = 50  # items, to find out whether their labels are those that a dataset keeps
FEW = 1000  # items, up to which there is no wait to show
PAIRS = ("samples", "_samples")  # or items with them


class DatasetPictures:
    """The pictures of a dataset of (image, label): of Pillow, or uint8 arrays (H, W[, C]) or tensors (C, H, W)."""

    def __init__(self, data: str, dataset: Dataset, classes: Sequence[str]):
        self.data = data
        self.dataset = dataset
        self.labels = labels_of(data, dataset)
        check_labels(data, self.labels, classes)

    def picture(self, number: int) -> Image.Image:
        """Raises InputError for an item that is no picture, or cannot be read."""
        name = f"data {self.data}: image {number}"
        with readable(name):
            item = self.dataset[number]
        return as_picture(item[0], name)


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raises InputError, which begins with `name`, for an image that cannot be read inside."""
    try:
        yield
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{name} cannot be read ({' '.join(str(error).split())}); mend it or take it away") from error


def as_picture(item: Any, name: str) -> Image.Image:
    """What a dataset gives as an image, in RGB or grey.  Raises InputError, which begins with `name`, for others."""
    if isinstance(item, Tensor):
        item = (item.permute(1, 2, 0) if item.dim() == 3 else item).numpy()
    if isinstance(item, np.ndarray):
        shape = item.shape[:2] if item.shape[2:] == (1,) else item.shape
        if item.dtype != np.uint8 or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (3, 4)):
            raise InputError(f"{name} is of {item.dtype} and shape {item.shape}; give uint8, in grey or colour")
        item = Image.fromarray(np.ascontiguousarray(item.reshape(shape)))
    if not isinstance(item, Image.Image):
        raise InputError(f"{name} is a {type(item).__name__}; give a picture of Pillow, or an array or tensor")
    with readable(name):
        return plain_picture(item)


def labels_of(data: str, dataset: Any) -> Tensor:
    """The labels of all items (N,) int64: as the dataset keeps them, else asked for one by one.

    Raises InputError for items that are no pairs of an image and a whole number.
    """
    if isinstance(dataset, Subset):
        return labels_of(data, dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        return torch.cat([labels_of(data, one) for one in dataset.datasets])
    kept = _kept_labels(dataset)
    if kept is not None and _are_given(data, dataset, kept):
        return kept
    shown = track(range(len(dataset)), f"labels of {data}", transient=True, disable=len(dataset) < FEW)
    with closing(shown) as numbers:  # its thread ends here, also where an item is refused
        return torch.tensor([_label(data, dataset, number) for number in numbers], dtype=torch.int64)


def _are_given(data: str, dataset: Any, kept: Tensor) -> bool:
    """Whether the items have the labels that a dataset keeps, rather than what it makes of them on the way."""
    if not len(kept) or getattr(dataset, "target_transform", None) is not None:
        return False
    firsts = [int((kept == label).nonzero()[0]) for label in kept.unique()]  # of each class
    return all(_label(data, dataset, number) == kept[number] for number in firsts[:MOST_LOOKED_AT])


def _kept_labels(dataset: Any) -> Tensor | None:
    for name in (*LABELS, *PAIRS):
        found = getattr(dataset, name, None)
        if not isinstance(found, Sequence | np.ndarray | Tensor) or isinstance(found, str):
            continue
        try:
            kept = [pair[-1] for pair in found] if name in PAIRS else found
            labels = torch.as_tensor(kept)
        except (TypeError, ValueError, RuntimeError, IndexError):
            continue
        if labels.shape == (len(dataset),) and not labels.is_floating_point():
            return labels.long()
    return None


def _label(data: str, dataset: Any, number: int) -> int:
    with readable(f"data {data}: item {number}"):
        item = dataset[number]
    label = item[1] if isinstance(item, Sequence) and len(item) == 2 else None
    if isinstance(label, Tensor | np.ndarray | np.generic) and len(np.ravel(label)) == 1:
        label = label.item()
    if not is_whole_number(label):
        raise InputError(f"data {data}: item {number} is no pair of an image and the number of its class")
    return label


def classes_of(data: str, dataset: Any, labels: Tensor | None = None) -> tuple[str, ...]:
    """The names of the classes, as the dataset says them, else the numbers up to the largest label.

    labels: of the dataset, where they are known.
    """
    said = getattr(dataset, "classes", None)
    if isinstance(said, Sequence) and not isinstance(said, str) and len(said):
        return tuple(name if isinstance(name, str) else ", ".join(map(str, np.atleast_1d(name))) for name in said)
    if isinstance(dataset, Subset):
        return classes_of(data, dataset.dataset)
    labels = labels_of(data, dataset) if labels is None else labels
    return tuple(str(number) for number in range(int(labels.max()) + 1 if len(labels) else 0))


def check_labels(data: str, labels: Tensor, classes: Sequence[str]) -> None:
    """Raise InputError for no labels, or those that are no class's number."""
    if not len(labels):
        raise InputError(f"data {data}: a split has no images")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise InputError(
            f"data {data}: labels are {labels.min()} to {labels.max()}, of {len(classes)} classes; they must be 0 to "
            f"{len(classes) - 1}"
        )
