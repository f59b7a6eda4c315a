"""A user's own loaders as the data that `fit` and `evaluate` ask for."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from norton.common.errors import InputError, first_line
from norton.data.datamodule import ClassificationData
from norton.graph.copies import copied
from norton.graph.logits import logits_in

Loader: TypeAlias = Iterable[Any]  # of batches (images, labels)
Data: TypeAlias = "ClassificationData | OwnLoaders | Loader | Sequence[Loader | None]"
IGNORED = 255  # of masks, as in VOC: pixels that do not count
FORM = "give (train, val) or (train, val, test), loaders of batches (images, labels)"


def as_data(data: Data, net: nn.Module) -> "ClassificationData | OwnLoaders":
    """Data as they are, or loaders for training, validation and test as data; one loader alone is for test."""
    if isinstance(data, ClassificationData | OwnLoaders):
        return data
    loaders = data if isinstance(data, tuple) else (None, data, data)
    if not 2 <= len(loaders) <= 3 or not all(isinstance(one, Iterable) or one is None for one in loaders):
        raise InputError(f"data are {type(data).__name__}; {FORM}")
    if any(isinstance(one, Iterator) for one in loaders):
        raise InputError(
            "a loader is an iterator, which can be read only once; give a DataLoader, or a list of batches"
        )
    # Lightning takes a list for several loaders.
    return OwnLoaders(net, *(DataLoader(one, batch_size=None) if isinstance(one, list) else one for one in loaders))


class OwnLoaders:
    """What `ClassificationData` tells, of loaders; the task is what the network's outputs are for.

    net: on the CPU; what it remembers of its data stays.  Of masks, 255 does not count.
    """

    name = "of your loaders"

    def __init__(self, net: nn.Module, train: Loader | None, val: Loader | None, test: Loader | None = None):
        self._loaders = {"train": train, "val": val, "test": test}
        self._net = net
        self.normalisation, self.classes, self.settings = (
            getattr(net, name, None) for name in ("normalisation", "classes", "data_settings")
        )
        logits = self._logits()
        self.task = "segmentation" if logits.dim() == 4 else "classification"
        self.num_classes, self.ignore = logits.shape[1], IGNORED

    def train_dataloader(self) -> Loader:
        return self._loader("train")

    def val_dataloader(self) -> Loader:
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        return self._loader("test")

    def calibration_images(self, count: int) -> Tensor:
        """The first images for training, at most so many."""
        batches: list[Tensor] = []
        for images, _ in self._loader("train"):
            batches.append(images)
            if sum(map(len, batches)) >= count:
                break
        return torch.cat(batches)[:count]

    def _loader(self, split: str) -> Loader:
        found = self._loaders[split]
        if found is None:
            raise InputError(f"data have no loader for {split}; {FORM}")
        return found

    @torch.no_grad()
    def _logits(self) -> Tensor:
        """What the network gives for the first batch that there is."""
        split = next((split for split in ("val", "test", "train") if self._loaders[split] is not None), "val")
        batch = next(iter(self._loader(split)), None)
        if not isinstance(batch, list | tuple) or len(batch) != 2 or not all(isinstance(x, Tensor) for x in batch):
            what = "no batch" if batch is None else f"a {type(batch).__name__}"
            raise InputError(f"the loader for {split} gives {what}; {FORM}")
        images = batch[0][:2]
        if images.is_floating_point():
            images = images.to(next(self._net.parameters(), torch.zeros(())))  # as `Task.read` does
        try:
            logits = logits_in(copied(self._net).eval()(images))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(f"the network does not take the batches for {split}: {first_line(error)}") from None
        if not isinstance(logits, Tensor) or logits.dim() not in (2, 4):
            raise InputError(
                "the network gives no logits, (N, classes) or (N, classes, H, W); train it by code of yours"
            )
        labels, count = batch[1], len(batch[0])
        if labels.is_floating_point() or labels.dim() != logits.dim() - 1 or len(labels) != count:
            raise InputError(
                f"the loader for {split} gives labels of {labels.dtype} and shape {tuple(labels.shape)}; for such a "
                f"network they are whole numbers, {f'({count}, H, W)' if logits.dim() == 4 else f'({count},)'}"
            )
        return logits
