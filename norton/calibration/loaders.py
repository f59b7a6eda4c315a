"""Images as users have them, a tensor, batches, a Dataset or a DataLoader, as what fitting and criteria go by."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from norton.calibration.batches import Images
from norton.common.errors import InputError, first_line, warn
from norton.graph.inputs import Example
from norton.graph.layers import network_in

# As `Images`, or anything that gives batches, with or without labels.
ImageSource: TypeAlias = Images | Iterable[Any]
MOST = 1024  # images of what gives batches one after the other, which may be a whole training set
LABELS = ("label", "labels", "target", "targets")  # of batches by name


def read_images(
    net: nn.Module, images: ImageSource | None, labels: Tensor | None = None
) -> tuple[Images | None, Tensor | None]:
    """Images, and labels where they come with them, of whatever a user gives for a network.

    images: a tensor (N, C, H, W) and None stay as they are.  Of a list all batches count; of any other iterable, such
    as a DataLoader, those up to MOST images, with a note where there are more; of a Dataset as many, from all over it.
    What a batch has besides the arguments that the network takes is left out: labels above all, which are returned
    where every batch has a tensor of them.  labels: of the user, which are returned in their place.

    Raises InputError for an iterable that gives no batch, and for a batch with its labels in the place of batches.
    """
    kind = type(images).__name__
    if isinstance(images, Dataset):
        with _read(kind):
            images = DataLoader(_from_all_over(images), batch_size=128)
    if (
        isinstance(images, Tensor | str | Mapping)
        or not isinstance(images, Iterable)
        or (isinstance(images, list) and not images)
    ):
        return images, labels  # what is none of them is refused where it is used
    if isinstance(images, list | tuple) and _is_batch(images):
        raise InputError("calibration images are one batch with its labels; give a list of batches, [(images, labels)]")
    takes, examples, found = _Arguments.of(network_in(net)), [], []
    with _read(kind):
        batches = list(images if isinstance(images, Sequence) else _first(images))
    for batch in batches:
        example, own = takes.split(batch)
        examples.append(example)
        found.append(own)
    if not examples:
        raise InputError(
            f"calibration images: {kind} gives no batch; give some, as a list where "
            "they are used more than once, for a generator can be read only once"
        )
    if labels is None and all(own is not None for own in found):
        labels = torch.cat(found)
    return _joined(examples), labels


def _is_batch(images: Sequence[Any]) -> bool:
    """Whether these are images and their labels, rather than two batches of what a network takes."""
    if len(images) != 2 or not all(isinstance(one, Tensor) for one in images):
        return False
    first, second = images
    if first.dim() > 2 and second.dim() == 2 and len(second) == len(first):
        return True  # a row for each, such as its classes one-hot
    return first.dim() > 1 and second.shape == first.shape[:1] and not second.is_floating_point()


@contextmanager
def _read(kind: str) -> Iterator[None]:
    """Raise InputError for whatever a user's own dataset or loader raises."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"calibration images: {kind} cannot be read ({first_line(error)}); it must give tensors, as a transform "
            "makes them of pictures, and say its length"
        ) from error


def _from_all_over(images: Dataset) -> Dataset:
    """MOST items, evenly from a dataset that has more, which may be sorted by class."""
    count = len(images) if hasattr(images, "__len__") and not isinstance(images, IterableDataset) else 0
    if count <= MOST:
        return images
    warn(f"calibration images: {MOST} of {count} are used; give a list of batches to use more")
    return Subset(images, [place * count // MOST for place in range(MOST)])


def _first(batches: Iterable[Any]) -> Iterator[Any]:
    """Batches of so many images that MOST are reached."""
    count, left = 0, iter(batches)
    for batch in left:
        if count >= MOST:
            warn(f"calibration images: the first {count} are used; give a list of batches to use more")
            return
        count += _count(batch)
        yield batch


def _count(batch: Any) -> int:
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    values = batch if isinstance(batch, list | tuple) else [batch]
    return next((len(x) for x in values if hasattr(x, "__len__")), 1)


def _joined(examples: list[Any]) -> Images:
    """One tensor of images, where the batches are of images of one size alone; else the batches."""
    alike = {(x.shape[1:], x.dtype, x.device) for x in examples if isinstance(x, Tensor) and x.dim()}
    return torch.cat(examples) if len(alike) == 1 and all(isinstance(x, Tensor) for x in examples) else examples


@dataclass(frozen=True)
class _Arguments:
    """What a network takes: names of arguments, by position and besides, and how many of the former it asks for."""

    positional: tuple[str, ...]
    by_name: frozenset[str]
    required: int
    any_number: bool
    any_name: bool

    @classmethod
    def of(cls, net: nn.Module) -> "_Arguments":
        kinds = inspect.Parameter
        parameters = inspect.signature(net.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        # A switch, such as `return_features=False`, is no place for what comes after the images, nor is a target.
        filled = takewhile(lambda p: p.default in (kinds.empty, None) and p.name not in LABELS, positional)
        return cls(
            tuple(p.name for p in filled),
            frozenset(p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)),
            sum(p.default is kinds.empty for p in positional),
            any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
            any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        )

    def split(self, batch: Any) -> tuple[Example, Tensor | None]:
        """What of a batch the network takes, and labels among the rest."""
        if isinstance(batch, Mapping):
            known = {
                name: x for name, x in batch.items() if name not in LABELS and (self.any_name or name in self.by_name)
            }
            return known or batch, _labels([batch[name] for name in LABELS if name in batch and name not in known])
        if not isinstance(batch, list | tuple):
            return batch, None
        count = len(batch) if self.any_number else min(len(batch), len(self.positional))
        while count > max(1, self.required) and _tells_about(batch[count - 1]):
            count -= 1
        taken, rest = tuple(batch[:count]), list(batch[count:])
        return taken[0] if count == 1 and isinstance(taken[0], Tensor) else taken, _labels(rest)


def _tells_about(value: Any) -> bool:
    """Whether what a network need not be given tells about images, as labels, boxes and names do."""
    return not isinstance(value, Tensor) or value.dtype == torch.int64


def _labels(rest: Sequence[Any]) -> Tensor | None:
    return next((x for x in rest if isinstance(x, Tensor) and x.dim() and not x.is_floating_point()), None)
