"""Pictures with masks: resized, augmented and kept together, and made splits for segmentation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from norton.common.errors import InputError
from norton.data.assembling import Part, Pictures, Presentation, Source, parts_of, sample
from norton.data.augmenting import drawn_by, named, names_in
from norton.data.normalising import NAMED, Normalisation, normalisation, normalised
from norton.data.preparing import MODES, preparation
from norton.data.splits import Splits

Pair: TypeAlias = tuple[Image.Image, Image.Image]  # a picture, and its mask of class numbers (mode L)
Transform: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of an image and its mask


@dataclass(frozen=True)
class PairPreparation:
    """Pictures and masks as a network of this size takes them: resized to it as a whole, so that every pixel counts.

    height, width: of its images.  colours: 3, or 1 for grey.
    """

    height: int
    width: int
    colours: int = 3

    @property
    def channels(self) -> int:
        """Of image and mask together: the mask is the last."""
        return self.colours + 1

    @property
    def box(self) -> tuple[int, int]:
        return self.height, self.width

    def __call__(self, pair: Pair) -> Tensor:
        """(channels, height, width) uint8: the picture bilinear, the mask by the nearest pixel."""
        size = (self.width, self.height)
        picture = pair[0].convert(MODES[self.colours]).resize(size, Image.Resampling.BILINEAR)
        mask = pair[1].resize(size, Image.Resampling.NEAREST)
        planes = [np.array(one).reshape(self.height, self.width, -1) for one in (picture, mask)]
        return torch.from_numpy(np.concatenate(planes, axis=2)).permute(2, 0, 1).contiguous()

    def middle(self, images: Tensor) -> Tensor:
        """Images without their masks: (..., colours, height, width)."""
        return images[..., :-1, :, :]


# A crop of the image that is reflected at its edges: what is beyond them keeps its class.
AUGMENTATIONS: dict[str, Callable[[PairPreparation], Transform]] = {
    "crop": lambda prepare: v2.RandomCrop(
        prepare.box, padding=[prepare.width // 8, prepare.height // 8], padding_mode="reflect"
    ),
    "resizedcrop": lambda prepare: v2.RandomResizedCrop(prepare.box, scale=(0.25, 1.0), antialias=True),
    "flip": lambda _: v2.RandomHorizontalFlip(),
    "colorjitter": lambda _: v2.ColorJitter(0.4, 0.4, 0.4),
}


class PairAugmentation:
    """One or several augmentations, one after the other, that move an image and its mask together.

    names: of AUGMENTATIONS; `none`; or the dotted path of a function of an image (C, H, W) uint8 and its mask (H, W)
    uint8 that returns both, the image of uint8 or from 0 to 1.  Raises InputError for others.
    """

    def __init__(self, data: str, names: str | Sequence[str] | None, prepare: PairPreparation):
        self.data = data
        self.prepare = prepare
        self.names = names_in(names)
        self.steps = [_step(data, name, prepare) for name in self.names]

    def __call__(self, image: Tensor, mask: Tensor, *key: int) -> tuple[Tensor, Tensor]:
        """An image and its mask augmented as the integers of `key` say, and torch's generator is left as it was.

        Raises InputError where a function of the user's own returns something else.
        """
        image, mask = tv_tensors.Image(image), tv_tensors.Mask(mask)
        with drawn_by(*key):
            for name, step in zip(self.names, self.steps, strict=True):
                image, mask = self._checked(name, step(image, mask))
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

    def _checked(self, name: str, found: Any) -> tuple[Any, Any]:
        box = self.prepare.box
        if isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(one, Tensor) for one in found):
            image, mask = found
            numbers = (image.dtype == torch.uint8 or image.is_floating_point()) and not mask.is_floating_point()
            if image.shape == (self.prepare.colours, *box) and mask.shape == box and numbers:
                return tv_tensors.Image(image), tv_tensors.Mask(mask)
        raise InputError(
            f"data {self.data}: augment {name} should take an image and its mask, and give both: the image "
            f"{(self.prepare.colours, *box)} of uint8 or from 0 to 1, the mask {box} of whole numbers"
        )


def _step(data: str, name: str, prepare: PairPreparation) -> Transform:
    if name in AUGMENTATIONS:
        return AUGMENTATIONS[name](prepare)
    if "." in name:
        return named(name, f"data {data}: augment")
    raise InputError(
        f"data {data}: augment {name!r} moves no masks; choose among none, {', '.join(AUGMENTATIONS)}, or give the "
        "path of a function of your own, my.module.function"
    )


class Pairs(Pictures):
    """A part of pictures with masks; gives (image, mask): a normalised float tensor (C, H, W), and int64 (H, W)."""

    def __init__(self, part: Part, how: Normalisation, augmentation: PairAugmentation | None = None, seed: int = 0):
        super().__init__(part, how, seed=seed)
        self.moves = augmentation if augmentation and augmentation.steps else None

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        kept = self.part.store[self.part.numbers[torch.as_tensor(indices)]]
        if self.moves is None:
            images, masks = kept[:, :-1], kept[:, -1]
        else:
            keys = [(self.seed, self.epoch, int(index)) for index in indices]
            moved = [self.moves(one[:-1], one[-1], *key) for one, key in zip(kept, keys, strict=True)]
            images, masks = (torch.stack(some) for some in zip(*moved, strict=True))
        return list(zip(normalised(images, self.how).unbind(), masks.long().unbind(), strict=True))


def assemble_pairs(
    data: str, sources: Mapping[str, Source], classes: Sequence[str], ignore: int | None, seed: int, how: Presentation
) -> Splits:
    """The splits of a dataset of pictures with masks.

    sources: of `train`, and of `val` and `test` where they are not to be drawn from it; their pictures are pairs.
    ignore: the value of pixels that do not count.  Raises InputError for options that make no sense.
    """
    if how.size is None:
        raise InputError(f"data {data}: nothing says the size of images; give size, e.g. 256, or [height,width]")
    sized = preparation(data, how.size, 3 if how.channels is None else how.channels)
    prepare = PairPreparation(sized.height, sized.width, sized.channels)
    augmentation = PairAugmentation(data, how.augment, prepare)
    parts = parts_of(data, sources, prepare, seed, how)
    published = NAMED["imagenet"] if prepare.colours == 3 else ((0.5,), (0.5,))
    scale = normalisation(data, how.mean, how.std, published, lambda: sample(parts["train"]))
    return Splits(
        train=Pairs(parts["train"], scale, augmentation, seed),
        val=Pairs(parts["val"], scale),
        test=Pairs(parts["test"], scale),
        calibration=Pairs(parts["train"], scale),
        classes=tuple(classes),
        input_size=(prepare.colours, prepare.height, prepare.width),
        normalisation=scale,
        task="segmentation",
        ignore=ignore,
        test_is_drawn="test" not in sources,
    )
