"""`clutter`: the digits of `mnist5k` over patches of photographs, made in memory; the embedded default.

Hard enough for networks to differ, and nothing to download: the photographs ship inside the packages scikit-image and
scikit-learn. Neither a digit nor a pixel of a photograph is in two splits.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from norton.common.errors import InputError
from norton.data.datasets.mnist5k import CLASSES, SIZES, digits, split_digits
from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.normalising import Statistic, normalisation
from norton.data.splits import DATASETS, Splits, generator

# All photographs of everyday things in the two wheels. Of the stereo pair of a motorcycle only one: the other shows
# the same pixels elsewhere, which would carry them across splits.
PHOTOGRAPHS = {
    "scikit-learn": ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
    "scikit-image": (
        "skimage",
        "data",
        (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coffee.png",
            "coins.png",
            "grass.png",
            "gravel.png",
            "motorcycle_left.png",
            "rocket.jpg",
        ),
    ),
}
# The part of each photograph's width that a split gets, left to right: the narrowest, of 384 pixels, still leaves a
# split two patches' width.
BANDS = {"train": (0.0, 0.6), "val": (0.6, 0.8), "test": (0.8, 1.0)}
SIZE = 32
# Of the training images at seed 0.
MEAN, STD = (0.4633, 0.4073, 0.3834), (0.2678, 0.2404, 0.2445)


@cache
def photographs() -> dict[str, Tensor]:
    """The photographs by file name, each (3, H, W) uint8. Shared: do not write to them.

    Raises InputError where an installed package lacks one.
    """
    found = {}
    for distribution, (package, folder, names) in PHOTOGRAPHS.items():
        spec = find_spec(package)  # finds the folder without importing the package, which takes seconds
        home = (
            Path(spec.submodule_search_locations[0]) / folder
            if spec and spec.submodule_search_locations
            else Path(package) / folder
        )
        for name in names:
            if not (home / name).is_file():
                raise InputError(
                    f"clutter: the photograph {name} of {distribution} is missing: looked for {home / name}; "
                    f"reinstall it with `pip install --force-reinstall {distribution}`, or use data=mnist5k"
                )
            with Image.open(home / name) as image:
                found[name] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    return found


def regions(split: str) -> dict[str, tuple[int, int, int, int]]:
    """Where `split` may take patches: (top, left, bottom, right) in pixels per photograph, the last two exclusive."""
    left, right = BANDS[split]
    return {
        name: (0, round(left * image.shape[2]), image.shape[1], round(right * image.shape[2]))
        for name, image in photographs().items()
    }


def patches(count: int, split: str, rng: torch.Generator) -> Tensor:
    """Patches of the split's regions, at full or half resolution: (count, 3, 32, 32) in [0, 1]."""
    out = torch.empty(count, 3, SIZE, SIZE)
    sources = []
    for name, (top, left, bottom, right) in regions(split).items():
        region = photographs()[name][:, top:bottom, left:right].float() / 255
        sources += [region, F.avg_pool2d(region, 2)]
    choice = torch.randint(0, len(sources), (count,), generator=rng)
    corner = torch.rand(count, 2, generator=rng)
    for number, source in enumerate(sources):
        mine = choice == number
        windows = source.unfold(1, SIZE, 1).unfold(2, SIZE, 1)
        row, column = (corner[mine] * torch.tensor(windows.shape[1:3])).long().unbind(1)
        out[mine] = windows[:, row, column].transpose(0, 1)
    mirror = torch.rand(count, generator=rng) < 0.5
    return torch.where(mirror[:, None, None, None], out.flip(3), out)


def uniform(low: float, high: float, shape: Sequence[int], rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=rng)


def jitter(images: Tensor, rng: torch.Generator) -> Tensor:
    """Random contrast about each image's mean, and random brightness of each channel."""
    count = len(images)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * uniform(0.6, 1.4, (count, 1, 1, 1), rng)
    return (images + uniform(-0.2, 0.2, (count, 3, 1, 1), rng)).clamp(0, 1)


def place(digits: Tensor, rng: torch.Generator) -> Tensor:
    """Digits (n, 28, 28) uint8, turned, scaled and shifted at random: coverage (n, 1, 32, 32) in [0, 1]."""
    count = len(digits)
    turn = uniform(-0.3, 0.3, (count,), rng)
    scale = uniform(0.65, 1.15, (count,), rng)
    shift = uniform(-0.25, 0.25, (count, 2), rng)
    cos, sin = turn.cos() / scale, turn.sin() / scale
    rotation = torch.stack([cos, -sin, sin, cos], 1).view(count, 2, 2)
    # The grid maps a place in the result to one in the source, so the shift goes through the rotation as well.
    theta = torch.cat([rotation, -rotation @ shift[:, :, None]], 2)
    padding = (SIZE - digits.shape[-1]) // 2
    source = F.pad(digits, [padding] * 4)[:, None].float() / 255
    return F.grid_sample(source, F.affine_grid(theta, list(source.shape), align_corners=False), align_corners=False)


def colours(background: Tensor, contrast: float, rng: torch.Generator) -> Tensor:
    """A colour per image at least `contrast` from its mean colour (Euclidean, in RGB): (n, 3, 1, 1)."""
    mean = background.mean((2, 3))
    candidates = torch.rand(len(background), 16, 3, generator=rng)
    far = (candidates - mean[:, None]).norm(dim=2) >= contrast
    first = far.int().argmax(1)
    return candidates[torch.arange(len(background)), first, :, None, None]


def render(digits: Tensor, split: str, seed: int, contrast: float = 0.3, opacity: float = 0.6) -> Tensor:
    """One picture per digit (n, 28, 28) uint8, over the split's photographs: (n, 3, 32, 32) uint8."""
    rng = generator(seed, list(SIZES).index(split))
    background = jitter(patches(len(digits), split, rng), rng)
    cover = place(digits, rng) * uniform(opacity, 1.0, (len(digits), 1, 1, 1), rng)
    picture = background + (colours(background, contrast, rng) - background) * cover
    return (picture * 255).round().to(torch.uint8)


@DATASETS.register("clutter")
def clutter(
    root: Path,
    seed: int,
    copies: Sequence[int] = (3, 2, 2),
    mean: Statistic = None,
    std: Statistic = None,
) -> Splits:
    """Digits in a random colour, place, size and opacity over photographs; training shifts by up to 3 pixels.

    copies: how often each digit of train, val and test is drawn, over another patch each time.  mean, std: see
    `norton.data.normalising`; by default those of all pictures.
    """
    copies = tuple(copies)
    if len(copies) != 3 or min(copies) < 1:
        raise InputError(f"clutter: copies {list(copies)} must be three positive integers, for train, val and test")
    images, labels = digits()
    chosen = {split: index.repeat(n) for (split, index), n in zip(split_digits(seed).items(), copies, strict=True)}
    pictures = {split: render(images[index], split, seed) for split, index in chosen.items()}

    scale = normalisation("clutter", mean, std, (MEAN, STD), lambda: pictures["train"])

    def part(split: str, augment: ShiftAndFlip | None = None) -> ImageTensors:
        mean, std = scale
        return ImageTensors(pictures[split], labels[chosen[split]], mean=mean, std=std, augment=augment, seed=seed)

    return Splits(
        train=part("train", ShiftAndFlip(3, padding="reflect")),
        val=part("val"),
        test=part("test"),
        calibration=part("train"),
        classes=CLASSES,
        input_size=(3, SIZE, SIZE),
        normalisation=scale,
        test_is_drawn=True,
    )
