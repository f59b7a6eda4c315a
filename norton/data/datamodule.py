"""A dataset as Lightning wants it."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.data.distributed import DistributedSampler

from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.data.assembling import cores
from norton.data.images import ImageTensors
from norton.data.normalising import NAMED, Normalisation, normalisation
from norton.data.splits import DEFAULT_ROOT, Splits, generator, load_data, test_of

MOST_WORKERS = 8
NOT_OF_IMAGES = ("mean", "std", "memory", "download")  # options that say nothing of which images there are


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch) alone, so a resumed training sees the batches an uninterrupted one would have seen.

    Lightning tells a sampler the epoch; this one passes it on to the dataset's augmentation and to `generator`, from
    which a DataLoader seeds its workers. Each of several devices gets every n-th sample of the same order.
    """

    # A DistributedSampler because Lightning leaves only those in place on several devices; theirs is told the devices
    # when it is made, which for a loader handed to `Trainer.fit` is before there are any.
    def __init__(self, dataset: Dataset, seed: int = 0):
        super().__init__(dataset, num_replicas=1, rank=0, seed=seed)
        self.generator = torch.Generator()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.generator.set_state(generator(self.seed, epoch, devices()[1]).get_state())
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / devices()[0])

    def __iter__(self) -> Iterator[int]:
        number, rank = devices()
        order = torch.randperm(len(self.dataset), generator=generator(self.seed, self.epoch))
        filled = torch.arange(len(self) * number) % len(order)  # devices must get equally many
        return iter(order[filled][rank::number].tolist())


class LateLoader(DataLoader):
    """Starts its workers at the first batch: Lightning asks for the iterator before it tells the sampler the epoch."""

    def __iter__(self) -> Iterator:
        len(self.dataset)  # a dataset that lists its files at the first use does so here, not again in every worker
        try:
            yield from super().__iter__()
        except InputError as error:
            raise InputError(_last_words(error)) from error
        except OSError as error:  # of a dataset of the user's own
            raise InputError(f"images cannot be read: {_last_words(error)}; mend them or take them away") from error


def _last_words(error: Exception) -> str:
    """An error's message; from a worker it comes wrapped in a traceback, whose last line has it."""
    said = str(error).rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(said.split())


def _no_images() -> Tensor:
    raise AssertionError("only auto looks at images")


def devices() -> tuple[int, int]:
    """How many devices train together, and which this is."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0


def check_loading(name: str, **settings: int) -> None:
    """Raise InputError for a batch_size below 1, or num_workers or seed below 0."""
    for setting, value in settings.items():
        check_whole_number(f"data {name}: {setting}", value, 1 if setting == "batch_size" else 0)


def workers_for(dataset: Dataset, batch_size: int) -> int:
    """How many processes should load a dataset: none where the images are in memory, else as there are cores."""
    source = dataset.dataset if isinstance(dataset, Subset) else dataset
    if isinstance(source, ImageTensors) or getattr(source, "in_memory", False) or cores() == 1:
        return 0
    return min(cores(), MOST_WORKERS, math.ceil(len(dataset) / batch_size))


class ClassificationData(lightning.LightningDataModule):
    """A dataset's loaders.

    name, root, seed and options: as in `load_data`, which is called at the first use; the seed also decides the order
    and augmentation of each training epoch. num_workers: None for as many as help, see `workers_for`.  named: whether a
    user chose these data, rather than a checkpoint.  problem: why there are no images, where that is known beforehand;
    who asks for them then gets it as InputError.
    """

    def __init__(
        self,
        name: str,
        batch_size: int,
        *,
        root: str | Path | None = None,
        seed: int = 0,
        num_workers: int | None = 0,
        **options: Any,
    ):
        super().__init__()
        check_loading(name, batch_size=batch_size, num_workers=num_workers or 0, seed=seed)
        self.name = name
        self.batch_size = batch_size
        self.root = Path(root) if root is not None else DEFAULT_ROOT
        self.seed = seed
        self.num_workers = num_workers
        self.options = options
        self.named = True
        self.problem = ""
        found = {key: value for key, value in options.items() if value is not None and key not in NOT_OF_IMAGES}
        found |= {} if root is None else {"root": str(self.root.absolute())}
        self._settings = {"name": name, "seed": seed, **found}
        self._splits: Splits | None = None

    @property
    def splits(self) -> Splits:
        if self.problem:
            raise InputError(self.problem)
        if self._splits is None:
            self._splits = load_data(self.name, root=self.root, seed=self.seed, **self.options)
        return self._splits

    @property
    def opened(self) -> bool:
        """Whether images were asked for."""
        return self._splits is not None

    @property
    def settings(self) -> dict[str, Any]:
        """By which the same images and splits are found again; a root that was given is absolute there.

        test_of: what the test images are part of, where images were asked for, see `test_of`.
        """
        return self._settings | ({"test_of": test_of(self._splits)} if self._splits is not None else {})

    @property
    def task(self) -> str:
        """What the labels are for: one of `norton.data.splits.TASKS`."""
        return self.splits.task

    @property
    def ignore(self) -> int | None:
        """The value of pixels in masks that do not count, see `Splits`."""
        return self.splits.ignore

    @property
    def num_classes(self) -> int:
        return self.splits.num_classes

    @property
    def classes(self) -> tuple[str, ...]:
        return self.splits.classes

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.splits.input_size

    @property
    def normalisation(self) -> Normalisation | None:
        """As in `Splits`; where it is told in numbers, or published, it needs no files."""
        return self.told_normalisation or self.splits.normalisation

    @property
    def told_normalisation(self) -> Normalisation | None:
        """The same, where it needs no files; else None."""
        told = self.options.get("mean"), self.options.get("std")
        if "auto" in told:
            return None
        known = NAMED.get(self.name) or next(
            (NAMED[one] for one in told if isinstance(one, str) and one in NAMED), None
        )
        lists = [tuple(one) for one in told if isinstance(one, list)]
        if known is None and lists and None not in told:
            known = lists[0], lists[0]  # only how many channels there are counts
        elif known is None and all(isinstance(one, int | float) for one in told):
            channels = (0.0,) * (self.options.get("channels") or 3)
            known = channels, channels
        return None if known is None else normalisation(self.name, *told, known, _no_images)

    def train_dataloader(self) -> DataLoader:
        sampler = EpochSampler(self.splits.train, self.seed)
        return self._loader(self.splits.train, sampler=sampler, generator=sampler.generator)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.splits.val)

    def test_dataloader(self) -> DataLoader:
        return self._loader(self.splits.test)

    def some_of(self, split: str, numbers: Sequence[int], batch_size: int) -> DataLoader:
        """Batches (images, labels) of the images that have these numbers in a split of `Splits`."""
        return self._loader(Subset(getattr(self.splits, split), numbers), batch_size=batch_size)

    def _loader(self, dataset: Dataset, **order: Any) -> DataLoader:
        # A loader without a generator takes a number from torch's global one at every start of an epoch.
        order.setdefault("generator", generator(self.seed))
        size = order.setdefault("batch_size", self.batch_size)
        workers = workers_for(dataset, size) if self.num_workers is None else self.num_workers
        return LateLoader(dataset, num_workers=workers, **order)

    def images(self, split: str, count: int) -> Tensor:
        """The first `count` images of a split of `Splits`, without labels: (count, 3, H, W)."""
        return self.labelled(split, count)[0]

    def labelled(self, split: str, count: int) -> tuple[Tensor, Tensor]:
        """The first `count` images of a split of `Splits`, (count, 3, H, W), and their labels, (count,) or masks."""
        images = getattr(self.splits, split)
        if not 1 <= count <= len(images):
            raise InputError(f"data {self.name}: {count} {split} images asked for; there are 1 to {len(images)}")
        batches = list(self._loader(Subset(images, range(count))))
        return torch.cat([batch for batch, _ in batches]), torch.cat([labels for _, labels in batches])

    def calibration_images(self, count: int) -> Tensor:
        """The first `count` training images without augmentation or labels: (count, 3, H, W), e.g. for BatchNorm.

        The seed decides which; in the sets that this project has they have the class proportions of the whole.
        """
        return self.images("calibration", count)

    def calibration_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """`calibration_images` with their labels, (count,)."""
        return self.labelled("calibration", count)
