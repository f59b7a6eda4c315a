"""COCO data as they lie on disk: images, and annotations with boxes, masks and keypoints."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from norton.common.errors import InputError

Target = dict[str, Any]
FEWEST_KEYPOINTS = 10  # visible ones, for an image of people to be trained on, as torchvision's scripts have it


def open_annotations(path: str | Path) -> COCO:
    """A COCO annotation file.  Raises InputError for one that is missing, damaged, or refers to what it lacks."""
    path = Path(path)
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"no annotations at {path}: {error.strerror}; give a COCO JSON file") from None
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); fetch it again") from None
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "categories")):
        raise InputError(f"{path}: no COCO annotations; expected lists of images, categories and annotations")
    _check_fields(content, path)
    known = {kind: {entry["id"] for entry in content[kind]} for kind in ("images", "categories")}
    for one in content.get("annotations", []):
        for key, kind in (("image_id", "images"), ("category_id", "categories")):
            if one.get(key) not in known[kind]:
                raise InputError(
                    f"{path}: annotation {one.get('id')} refers to {key} {one.get(key)}, which is not there"
                )
    coco = COCO()
    coco.dataset = {"annotations": [], **content}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco.createIndex()
    return coco


def _check_fields(content: dict[str, Any], path: Path) -> None:
    """Raise InputError for entries without what COCO's have; whoever leaves out iscrowd means no crowd."""
    needed = {
        "images": ("id", "file_name", "width", "height"),
        "categories": ("id", "name"),
        "annotations": ("id", "image_id", "category_id", "bbox", "area"),
    }
    for kind, fields in needed.items():
        for number, entry in enumerate(content.get(kind, [])):
            if missing := [field for field in fields if field not in entry]:
                raise InputError(f"{path}: number {number} of its {kind} has no {missing[0]}; COCO's have {fields}")
    for one in content.get("annotations", []):
        one.setdefault("iscrowd", 0)


class CocoImages(Dataset):
    """Images with their objects, for torchvision's detectors: (image (3, H, W) in [0, 1], target).

    A target has image_id, boxes (N, 4) as x1 y1 x2 y2, labels (N,), area, iscrowd, and masks (N, H, W) or keypoints
    (N, K, 3) where asked for.  kind: boxes, masks or keypoints.  Crowds are left out, as in training on COCO; scores
    are computed from the annotations themselves, which keep them.  Boxes of no area are left out and counted in
    `skipped`, boxes that reach beyond the image are cut and counted in `cut`.  transform: of torchvision's v2.

    Raises InputError where image files are missing, and for images that cannot be read.
    """

    def __init__(self, folder: str | Path, annotations: COCO, kind: str = "boxes", transform: Callable | None = None):
        if kind not in ("boxes", "masks", "keypoints"):
            raise InputError(f"kind is {kind!r}; choose one of boxes, masks, keypoints")
        self.folder, self.coco, self.kind, self.transform = Path(folder), annotations, kind, transform
        self.ids = sorted(annotations.imgs)
        self._check_files()
        self.skipped = self.cut = 0
        self._objects = {image: self._usable(image) for image in self.ids}

    @property
    def num_classes(self) -> int:
        """With the background; labels are COCO's category ids, which have gaps."""
        return 1 + max(self.coco.cats, default=0)

    @property
    def num_keypoints(self) -> int:
        """Of an object of the category that has the most."""
        return max((len(category.get("keypoints", ())) for category in self.coco.cats.values()), default=0)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        image = self._image(self.ids[index])
        target = self._target(self.ids[index], image.shape[-2:])
        if self.transform is not None:
            image, target = self.transform(image, target)
        return image.as_subclass(Tensor).float() / 255, {key: _plain(value) for key, value in target.items()}

    def size(self, index: int) -> tuple[int, int]:
        """(height, width), from the annotations."""
        image = self.coco.imgs[self.ids[index]]
        return image["height"], image["width"]

    def with_objects(self) -> list[int]:
        """The indices of images worth training on: with objects, and for keypoints of people enough visible ones."""
        return [index for index, image in enumerate(self.ids) if self._worth(self._objects[image])]

    def _worth(self, objects: list[dict]) -> bool:
        if not objects or self.kind != "keypoints":
            return bool(objects)
        visible = sum(sum(v > 0 for v in one["keypoints"][2::3]) for one in objects)
        return visible >= min(FEWEST_KEYPOINTS, len(objects[0]["keypoints"]) // 3)

    def _check_files(self) -> None:
        try:
            present = {path.name for path in self.folder.iterdir()}
        except OSError as error:
            raise InputError(f"no images in {self.folder}: {error.strerror}; give the folder that has them") from None
        missing = [
            entry["file_name"] for entry in self.coco.imgs.values() if Path(entry["file_name"]).name not in present
        ]
        if missing:
            raise InputError(f"{self.folder}: {len(missing)} annotated images are missing, first {missing[0]}")

    def _usable(self, image: int) -> list[dict]:
        """The objects of an image with boxes of some area inside of it; the others are counted."""
        entry, found = self.coco.imgs[image], []
        for one in self.coco.imgToAnns[image]:
            if one.get("iscrowd") or (self.kind == "keypoints" and "keypoints" not in one):
                continue
            x, y, width, height = one["bbox"]
            box = [max(x, 0), max(y, 0), min(x + width, entry["width"]), min(y + height, entry["height"])]
            if box[2] <= box[0] or box[3] <= box[1]:
                self.skipped += 1
                continue
            if self.kind == "masks" and "segmentation" not in one:
                raise InputError(f"annotation {one['id']} has no segmentation, which masks are learnt from")
            self.cut += box != [x, y, x + width, y + height]
            found.append({**one, "box": box})
        return found

    def _image(self, image: int) -> Tensor:
        path = self.folder / self.coco.imgs[image]["file_name"]
        try:
            with Image.open(path) as file:
                pixels = np.array(file.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"cannot read the image {path} ({error}); fetch it again") from None
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))

    def _target(self, image: int, size: tuple[int, int]) -> Target:
        objects = self._objects[image]
        boxes = torch.tensor([one["box"] for one in objects], dtype=torch.float32).reshape(-1, 4)
        target = {
            "image_id": image,
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size),
            "labels": torch.tensor([one["category_id"] for one in objects], dtype=torch.int64),
            "area": torch.tensor([one["area"] for one in objects], dtype=torch.float32),
            "iscrowd": torch.zeros(len(objects), dtype=torch.int64),
        }
        if self.kind == "masks":
            masks = [self.coco.annToMask(one) for one in objects]
            target["masks"] = tv_tensors.Mask(np.stack(masks) if masks else np.zeros((0, *size), dtype=np.uint8))
        if self.kind == "keypoints":
            points = torch.tensor([one["keypoints"] for one in objects], dtype=torch.float32)
            target["keypoints"] = points.reshape(len(objects), self.num_keypoints, 3)
        return target


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value


def encode(mask: Tensor) -> dict[str, Any]:
    """A mask (H, W) of 0 and 1 as COCO's run lengths, ready for JSON."""
    encoded = rle.encode(np.asfortranarray(mask.cpu().numpy().astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}
