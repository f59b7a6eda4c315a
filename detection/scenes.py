"""`scenes`: handwritten digits on photographs, several to an image, written once as COCO JSON with images.

Boxes and masks of ten categories in `annotations/instances_SPLIT.json`, four keypoints of the one category digit (its
extreme points) in `annotations/keypoints_SPLIT.json`. Neither a digit nor a pixel of a photograph is in two splits.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as rle
from rich.progress import track
from torch import Tensor

from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.common.files import write_json
from norton.data.datasets.clutter import colours, photographs, regions
from norton.data.datasets.mnist5k import CLASSES, digits, split_digits
from norton.data.splits import generator

KEYPOINTS = ("top", "bottom", "left", "right")
COUNTS = {"train": 2000, "val": 100, "test": 200}
SIZE = 128
LARGEST_COUNT = 4  # digits in an image; one image in twenty has none
SIDES = (28, 60)  # of a digit, in pixels
_SETTINGS = "scenes.json"


class Scene(NamedTuple):
    """An image (3, H, W) uint8 with the masks (N, H, W) bool and labels (N,) of its digits."""

    image: Tensor
    masks: Tensor
    labels: Tensor


def write_scenes(
    root: str | Path, *, seed: int = 0, size: int = SIZE, counts: Mapping[str, int] = COUNTS, progress: bool = False
) -> Path:
    """Write the data set to `root`, unless it is there already; whole or not at all.

    Raises InputError where `root` holds something else, or scenes of other settings.
    """
    root = Path(root)
    for name, number in {"size": size, **counts}.items():
        check_whole_number(f"scenes: {name}", number, 2 * SIDES[0] if name == "size" else 1)
    settings = {"seed": seed, "size": size, "counts": dict(counts), "version": 1}
    if root.exists() and any(root.iterdir()):
        _check_same(root, settings)
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as temporary:
        whole = Path(temporary) / "scenes"
        for split, count in counts.items():
            _write_split(whole, split, count, size, seed, progress)
        write_json(whole / _SETTINGS, settings)
        try:
            whole.rename(root)  # also over an empty folder
        except OSError:  # another process was faster
            _check_same(root, settings)
    return root


def _check_same(root: Path, settings: Mapping[str, Any]) -> None:
    try:
        found = json.loads((root / _SETTINGS).read_text())
    except (OSError, ValueError):
        raise InputError(f"{root} holds something else than scenes; choose an empty folder") from None
    if found != settings:
        raise InputError(f"{root} holds scenes of other settings, {found}; choose another folder, or remove it")


def scenes(split: str, count: int, size: int = SIZE, seed: int = 0) -> Iterator[Scene]:
    """The scenes of a split, the same for the same seed."""
    images, labels = digits()
    chosen = split_digits(seed)[split]
    for number in range(count):
        rng = generator(seed, ("train", "val", "test").index(split), number)
        yield compose(background(split, size, rng), images[chosen], labels[chosen], rng)


def background(split: str, size: int, rng: torch.Generator) -> Tensor:
    """A square of a photograph's part that belongs to the split, brought to (3, size, size) in [0, 1]."""
    names = list(regions(split))
    name = names[_draw(len(names), rng)]
    top, left, bottom, right = regions(split)[name]
    largest = min(bottom - top, right - left)
    side = min(largest, size // 2 + _draw(max(1, largest - size // 2), rng))
    y, x = top + _draw(bottom - top - side + 1, rng), left + _draw(right - left - side + 1, rng)
    patch = photographs()[name][:, y : y + side, x : x + side].float()[None] / 255
    return F.interpolate(patch, size=(size, size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def compose(image: Tensor, pictures: Tensor, labels: Tensor, rng: torch.Generator) -> Scene:
    """Put digits on a background (3, H, W), where they do not cover each other."""
    size = image.shape[-1]
    wanted = 0 if _draw(20, rng) == 0 else 1 + _draw(LARGEST_COUNT, rng)
    taken, masks, found = torch.zeros(size, size, dtype=torch.bool), [], []
    for _ in range(5 * wanted):
        if len(masks) == wanted:
            break
        number = _draw(len(pictures), rng)
        cover = _placed(pictures[number], size, rng)
        mask = cover > 0.4
        if not mask.any() or (mask & taken).any() or _touches_edge(mask):
            continue
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        taken[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True  # boxes do not cover digits either
        colour = colours(image[None], 0.4, rng)[0]
        image = image + (colour - image) * cover
        masks.append(mask)
        found.append(labels[number])
    empty = torch.zeros(0, size, size, dtype=torch.bool)
    picture = (image * 255).round().to(torch.uint8)
    return Scene(picture, torch.stack(masks) if masks else empty, torch.stack(found) if found else labels[:0])


def _placed(digit: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A digit (28, 28) uint8 turned, scaled and moved: coverage (size, size) in [0, 1]."""
    side = SIDES[0] + _draw(SIDES[1] - SIDES[0], rng)
    angle = (torch.rand(1, generator=rng).item() - 0.5) * 0.6
    centre = (torch.rand(2, generator=rng) * 2 - 1) * (1 - side / size)
    scale = size / side
    rotation = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) * scale
    theta = torch.cat([rotation, -rotation @ centre[:, None]], 1)[None]
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False)
    return F.grid_sample(digit[None, None].float() / 255, grid, align_corners=False)[0, 0]


def _touches_edge(mask: Tensor) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _draw(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (1,), generator=rng))


def _write_split(root: Path, split: str, count: int, size: int, seed: int, progress: bool) -> None:
    (root / split).mkdir(parents=True)
    images, instances, keypoints = [], [], []
    found = scenes(split, count, size, seed)
    for number, scene in enumerate(
        track(found, f"write {split}", total=count, disable=not progress, transient=True), 1
    ):
        name = f"{number:06}.png"
        Image.fromarray(scene.image.permute(1, 2, 0).numpy()).save(root / split / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
        for mask, label in zip(scene.masks.numpy(), scene.labels.tolist(), strict=True):
            common = annotation(mask, number, len(instances) + 1)
            instances.append({**common, "category_id": label + 1})
            points = extreme_points(mask)
            visible = [value for x, y in points for value in (x, y, 2)]
            keypoints.append({**common, "category_id": 1, "keypoints": visible, "num_keypoints": len(points)})
    categories = [{"id": number + 1, "name": name, "supercategory": "digit"} for number, name in enumerate(CLASSES)]
    one = [{"id": 1, "name": "digit", "supercategory": "digit", "keypoints": list(KEYPOINTS), "skeleton": []}]
    for name, kinds, annotations in (("instances", categories, instances), ("keypoints", one, keypoints)):
        content = {"info": {}, "licenses": [], "images": images, "categories": kinds, "annotations": annotations}
        write_json(root / "annotations" / f"{name}_{split}.json", content)


def annotation(mask: np.ndarray, image: int, number: int) -> dict[str, Any]:
    """What both files say of a digit (H, W): COCO's box [x, y, width, height], area, and run-length mask."""
    encoded = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image,
        "bbox": rle.toBbox(encoded).tolist(),
        "area": float(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
    }


def extreme_points(mask: np.ndarray) -> list[tuple[float, float]]:
    """(x, y) of the top, bottom, left and right of a mask (H, W), in pixels; the middle of an edge of several."""
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    edges = [(None, rows[0]), (None, rows[-1]), (columns[0], None), (columns[-1], None)]
    points = []
    for x, y in edges:
        middle = float(np.mean(mask[y].nonzero()[0] if x is None else mask[:, x].nonzero()[0]))
        points.append((middle + 0.5, float(y) + 0.5) if x is None else (float(x) + 0.5, middle + 0.5))
    return points
