"""`segmentation`: images with masks, the user's own, or torchvision's VOC and Cityscapes as `segmentation/voc`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from norton.common.checks import check_boolean, is_whole_number
from norton.common.errors import InputError, warn
from norton.data.assembling import Presentation, presented
from norton.data.datasets.folder import NAMES
from norton.data.datasets.torchvision import make
from norton.data.masks import BLACK_AND_WHITE, Files, MaskedPictures, count_classes, values_in
from norton.data.pairs import assemble_pairs
from norton.data.pictures import ENDINGS, is_image
from norton.data.splits import DATASETS, Splits

LOOKED_AT = 100  # masks, where two classes are told, before all are read to see whether they are of 0 and 255
IMAGES, MASKS = "images", "masks"
LAYOUT = (
    "it must hold images/ and masks/ with files of the same names, and in both, or above both, train/, val/ and test/ "
    "where there are such"
)
VOC = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
Found = tuple[Path, Path]  # the folders of a split's images and masks


@DATASETS.register("segmentation")
@presented
def segmentation(
    root: Path,
    seed: int,
    how: Presentation,
    dataset: str = "folder",
    classes: int | Sequence[str] | None = None,
    ignore: int | None = 255,
    download: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Splits:
    """Images with masks, whose values are the numbers of classes.

    dataset: `folder` for one's own, `voc` or `cityscapes`.  classes: how many, or their names; by default counted in
    the training masks.  ignore: the value of pixels that do not count; None where all do.  Of one's own masks of 0 and
    255 alone, 255 is the class 1.  download, options: of torchvision's, see `torchvision`.
    """
    check_boolean("data segmentation: download", download)
    if ignore is not None and not (is_whole_number(ignore, 0) and ignore <= 255):
        raise InputError(f"data segmentation: ignore {ignore!r} is no value of a pixel; give 0 to 255, or null")
    if dataset in ("voc", "cityscapes"):
        if classes is not None:
            raise InputError(f"data segmentation/{dataset}: has classes of its own; leave classes out")
        return (_voc if dataset == "voc" else _cityscapes)(root, seed, how, download, dict(options or {}))
    if dataset != "folder":
        raise InputError(f"data segmentation: name {dataset!r} is unknown; choose one of folder, voc, cityscapes")
    if download or options:
        raise InputError("data segmentation: download and options are for voc and cityscapes; leave them out")
    return _folder(root, seed, how, classes, ignore)


def _folder(root: Path, seed: int, how: Presentation, classes: Any, ignore: int | None) -> Splits:
    data = "segmentation"
    found = layout(root)
    listed = {split: partial(pairs_of, *folders) for split, folders in found.items()}
    first = "train" if "train" in found else next(iter(found))
    if "train" not in found:  # who evaluates need not have it: whoever asks for what is missing is told so
        listed = dict.fromkeys(NAMES, partial(_no_training, root)) | listed
    names, numbers = _names(classes), None
    if len(names) in (0, 2):
        values = _values(data, listed[first]().masks, told=bool(names))
        if values == [0, 255]:
            warn(f"data {data}: its masks are of 0 and 255 alone: 255 is the class 1, and no value is ignored")
            names, numbers, ignore = names or ("0", "1"), BLACK_AND_WHITE, None
        names = names or tuple(map(str, range(count_classes(data, values, ignore))))
    sources = {split: MaskedPictures(data, files, len(names), ignore, numbers) for split, files in listed.items()}
    return assemble_pairs(data, sources, names, ignore, seed, how)


def _values(data: str, masks: Sequence[Path], told: bool) -> list[int]:
    """The values in masks; where the classes are told, of the first alone, unless those are of 0 and 255."""
    if told and (first := values_in(data, masks[:LOOKED_AT])) != [0, 255]:
        return first
    return values_in(data, masks)


def _names(classes: Any) -> tuple[str, ...]:
    """The names of the classes that somebody gives, none for None.  Raises InputError for fewer than two."""
    if classes is None:
        return ()
    if is_whole_number(classes):
        names = tuple(map(str, range(classes)))
    elif isinstance(classes, Sequence) and not isinstance(classes, str):
        names = tuple(map(str, classes))
    else:
        raise InputError(f"data segmentation: classes {classes!r}: give how many, or a list of their names")
    if not 2 <= len(names) <= 256 or len(set(names)) < len(names):
        raise InputError(f"data segmentation: classes {classes!r}: there must be 2 to 256, of different names")
    return names


def layout(root: Path) -> dict[str, Found]:
    """Split → its folders; of `images` and `masks` without splits in them, all are for training.

    Raises InputError for a root without both.
    """
    looked = f"data segmentation: looked for images in {root.absolute()}"
    if not root.is_dir():
        raise InputError(f"{looked}: no such folder; set data.root to the one that has them: {LAYOUT}")
    found: dict[str, Found] = {}
    for split, names in NAMES.items():
        for name in sorted(one.name for place in (root, root / IMAGES) for one in _folders(place)):
            if name.lower() not in names:
                continue
            above = (root / name / IMAGES, root / name / MASKS)
            pair = above if above[0].is_dir() else (root / IMAGES / name, root / MASKS / name)
            if split in found:
                raise InputError(f"{looked}: {found[split][0]} and {pair[0]} mean the same split; leave one there")
            found[split] = pair
    if not found and (root / IMAGES).is_dir():
        found = {"train": (root / IMAGES, root / MASKS)}
    if not found:
        raise InputError(f"{looked}: found no {IMAGES}/; {LAYOUT}")
    for _, masks in found.values():
        if not masks.is_dir():
            raise InputError(f"{looked}: found no {masks.relative_to(root)}/; {LAYOUT}")
    return found


def _folders(place: Path) -> list[Path]:
    return [one for one in place.iterdir() if one.is_dir()] if place.is_dir() else []


def pairs_of(images: Path, masks: Path) -> Files:
    """The images below a folder, sorted, and the masks of the same names, whatever their endings.

    Raises InputError for no images, an image without a mask, and two files of one name.
    """
    pictures, theirs = _by_name(images), _by_name(masks)
    if not pictures:
        raise InputError(f"data segmentation: no image in {images.absolute()}; names end in {', '.join(ENDINGS)}")
    if missing := [path for name, path in pictures.items() if name not in theirs]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise InputError(
            f"data segmentation: no mask for {missing[0]}{more}: looked for a file of the same name in {masks}; add "
            "it, or take the image away"
        )
    if others := [path for name, path in theirs.items() if name not in pictures]:
        warn(f"data segmentation: {len(others)} masks without an image are left out, such as {others[0]}")
    return Files(list(pictures.values()), [theirs[name] for name in pictures])


def _by_name(folder: Path) -> dict[str, Path]:
    """Name below a folder, without its ending → file."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if is_image(path) and path.is_file():
            name = str(path.relative_to(folder).with_suffix(""))
            if name in found:
                raise InputError(f"data segmentation: {found[name]} and {path} have the same name; leave one there")
            found[name] = path
    return found


def _no_training(root: Path) -> Files:
    raise InputError(f"data segmentation: no training images in {root.absolute()}; {LAYOUT}")


def _voc(root: Path, seed: int, how: Presentation, download: bool, options: dict[str, Any]) -> Splits:
    """The labels of VOC's test set are not public: its `val` is for testing, and validation images are drawn."""
    data, ignore = "segmentation/voc", 255
    made = {
        split: make(data, "VOCSegmentation", root, {"image_set": name, **options}, download)
        for split, name in (("train", "train"), ("test", "val"))
    }
    sources = {
        split: MaskedPictures(data, partial(_files, one.images, one.targets), len(VOC), ignore)
        for split, one in made.items()
    }
    return assemble_pairs(data, sources, VOC, ignore, seed, how)


def _cityscapes(root: Path, seed: int, how: Presentation, download: bool, options: dict[str, Any]) -> Splits:
    """The 19 classes that are scored; as for VOC, `val` is for testing.  Fetching it needs a login."""
    data, ignore = "segmentation/cityscapes", 255
    made = {
        split: make(data, "Cityscapes", root, {"split": name, "target_type": "semantic", **options}, download)
        for split, name in (("train", "train"), ("test", "val"))
    }
    scored = {one.train_id: one for one in made["train"].classes if 0 <= one.train_id < ignore}
    numbers: np.ndarray = np.full(256, ignore, dtype=np.uint8)
    for label, one in scored.items():
        numbers[one.id] = label
    names = [scored[label].name for label in sorted(scored)]
    sources = {
        split: MaskedPictures(
            data, partial(_files, one.images, [targets[0] for targets in one.targets]), len(names), ignore, numbers
        )
        for split, one in made.items()
    }
    return assemble_pairs(data, sources, names, ignore, seed, how)


def _files(images: Sequence[str], masks: Sequence[str]) -> Files:
    order = sorted(range(len(images)), key=lambda place: images[place])  # as the file system lists them, else
    return Files([Path(images[place]) for place in order], [Path(masks[place]) for place in order])
