"""Detection data as Lightning wants them: `scenes`, `coco` and `coco_kp`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from torchvision.transforms.v2 import functional

from detection.coco import CocoImages, Target, open_annotations
from detection.scenes import COUNTS, KEYPOINTS, SIZE, write_scenes
from norton.common.errors import InputError
from norton.data.datamodule import EpochSampler, LateLoader, check_loading, devices
from norton.data.splits import generator

# name → split → (folder of images, annotations for boxes and masks, annotations for keypoints), below the root.
LAYOUTS = {
    "scenes": {
        split: (split, f"annotations/instances_{split}.json", f"annotations/keypoints_{split}.json")
        for split in ("train", "val", "test")
    },
    # COCO's own test set has no public annotations: its validation set serves to select and to report.
    "coco": {
        split: (year, f"annotations/instances_{year}.json", f"annotations/person_keypoints_{year}.json")
        for split, year in (("train", "train2017"), ("val", "val2017"), ("test", "val2017"))
    },
}
SIGMAS = {"scenes": (0.05,) * len(KEYPOINTS), "coco": None}  # of COCO's people where None
ROOTS = {"scenes": Path("data/scenes"), "coco": Path("data/coco")}
MIRRORED_PERSON = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)  # left and right of COCO's keypoints


class Mirrored(Dataset):
    """Images worth training on, half of them mirrored, drawn from (seed, epoch, index) alone.

    Digits that are mirrored are other digits, hence `flip`; flip_keypoints: where each keypoint goes.
    """

    def __init__(self, images: CocoImages, seed: int, flip: bool, flip_keypoints: Sequence[int] = ()):
        self.images, self.seed, self.flip = images, seed, flip
        self.flip_keypoints = list(flip_keypoints)
        self.indices = images.with_objects()
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image, target = self.images[self.indices[index]]
        if self.flip and torch.rand(1, generator=generator(self.seed, self.epoch, index)) < 0.5:
            return self._mirror(image, target)
        return image, target

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(self.indices[index])

    def _mirror(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        width = image.shape[-1]
        boxes = target["boxes"].clone()
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
        target = {**target, "boxes": boxes}
        if "masks" in target:
            target["masks"] = functional.horizontal_flip(target["masks"])
        if "keypoints" in target:
            points = target["keypoints"][:, self.flip_keypoints].clone()
            points[..., 0] = width - points[..., 0]
            points[points[..., 2] == 0] = 0  # COCO has zeros for what is not labelled
            target["keypoints"] = points
        return functional.horizontal_flip(image), target


class AspectBatches(Sampler):
    """Batches of images that are all wide or all tall, so that little of a batch is padding.

    sampler: gives the order.  wide: per image.  Leftovers of both kinds share the last batches, so that their number
    is that of any batching, on every device.
    """

    def __init__(self, sampler: EpochSampler, wide: Sequence[bool], batch_size: int):
        self.sampler, self.wide, self.batch_size = sampler, list(wide), batch_size

    def __len__(self) -> int:
        return -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        open_batches: dict[bool, list[int]] = {False: [], True: []}
        for index in self.sampler:
            batch = open_batches[self.wide[index]]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield list(batch)
                batch.clear()
        rest = open_batches[False] + open_batches[True]
        for start in range(0, len(rest), self.batch_size):
            yield rest[start : start + self.batch_size]


class Share(Sequence):
    """The indices of every n-th of `count` images, where n devices train together: those of this device."""

    def __init__(self, count: int):
        self.count = count

    def _indices(self) -> range:
        number, rank = devices()
        return range(rank, self.count, number)

    def __len__(self) -> int:
        return len(self._indices())

    def __getitem__(self, place: int) -> int:
        return self._indices()[place]


class DetectionData(lightning.LightningDataModule):
    """The loaders of a detection data set; `scenes` are written at the first use.

    name: scenes or coco.  kind: boxes, masks or keypoints.  root: the folder of images and annotations.  seed: of the
    scenes, and of the order and mirroring of each training epoch.  size, counts: of scenes.

    Raises InputError at the first use for data that are missing or damaged.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        batch_size: int,
        *,
        root: str | Path | None = None,
        num_workers: int = 0,
        seed: int = 0,
        size: int = SIZE,
        counts: dict[str, int] = COUNTS,
    ):
        super().__init__()
        if name not in LAYOUTS:
            raise InputError(f"unknown detection data {name!r}; choose one of {', '.join(LAYOUTS)}")
        check_loading(name, batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.name, self.kind, self.batch_size, self.num_workers, self.seed = name, kind, batch_size, num_workers, seed
        self.root = Path(root) if root is not None else ROOTS[name]
        self.size, self.counts = size, dict(counts)
        self.sigmas = SIGMAS[name]
        self._splits: dict[tuple, CocoImages] = {}  # by layout, for COCO reports on the images that it selects by

    def images(self, split: str) -> CocoImages:
        """The images of a split, opened once."""
        layout = LAYOUTS[self.name][split]
        if layout not in self._splits:
            if self.name == "scenes":
                write_scenes(self.root, seed=self.seed, size=self.size, counts=self.counts, progress=True)
            folder, instances, keypoints = layout
            annotations = open_annotations(self.root / (keypoints if self.kind == "keypoints" else instances))
            self._splits[layout] = CocoImages(self.root / folder, annotations, self.kind)
        return self._splits[layout]

    @property
    def num_classes(self) -> int:
        """With the background."""
        return self.images("val").num_classes

    @property
    def categories(self) -> dict[int, str]:
        """Label → name."""
        return {label: category["name"] for label, category in self.images("val").coco.cats.items()}

    @property
    def num_keypoints(self) -> int | None:
        return self.images("val").num_keypoints if self.kind == "keypoints" else None

    def train_dataloader(self) -> DataLoader:
        images = Mirrored(self.images("train"), self.seed, self.name != "scenes", MIRRORED_PERSON)
        if not len(images):
            raise InputError(f"data {self.name}: none of the training images in {self.root} has objects to learn from")
        sampler = EpochSampler(images, self.seed)
        wide = [width > height for height, width in map(images.size, range(len(images)))]
        batches = AspectBatches(sampler, wide, self.batch_size)
        return LateLoader(
            images, batch_sampler=batches, num_workers=self.num_workers, collate_fn=tuples, generator=sampler.generator
        )

    def val_dataloader(self, shared: bool = False) -> DataLoader:
        """shared: devices that train together take every n-th image each."""
        return self._in_order("val", shared)

    def test_dataloader(self) -> DataLoader:
        return self._in_order("test")

    def _in_order(self, split: str, shared: bool = False) -> DataLoader:
        images = self.images(split)
        if shared:
            images = Subset(images, Share(len(images)))
        options = {"num_workers": self.num_workers, "collate_fn": tuples, "generator": generator(self.seed)}
        return LateLoader(images, batch_size=self.batch_size, **options)


def tuples(batch: Sequence[tuple[Tensor, Target]]) -> tuple[tuple[Tensor, ...], tuple[Target, ...]]:
    """Images and targets of a batch; images differ in size, so they are not stacked."""
    images, targets = zip(*batch, strict=True)
    return images, targets
