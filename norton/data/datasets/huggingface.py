"""`huggingface/NAME`: a dataset of images with classes that the library `datasets` loads, e.g. `huggingface/beans`."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from norton.common.errors import InputError, first_line, warn
from norton.common.extras import optional
from norton.data.assembling import Presentation, assemble, presented
from norton.data.splits import DATASETS, DEFAULT_ROOT, Splits
from norton.data.wrapping import as_picture, check_labels, readable

HIDDEN = -1  # the label of images whose class is not published
NAMES = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}


class Rows:
    """The pictures of a split."""

    def __init__(self, data: str, rows: Any, image: str, labels: list[int], classes: tuple[str, ...]):
        self.data = data
        self.rows = rows
        self.image = image
        self.labels = torch.tensor(labels, dtype=torch.int64)
        check_labels(data, self.labels, classes)

    def picture(self, number: int) -> Image.Image:
        name = f"data {self.data}: image {number}"
        with readable(name):
            item = self.rows[number][self.image]
        return as_picture(item, name)


@DATASETS.register("huggingface")
@presented
def huggingface(
    root: Path,
    seed: int,
    how: Presentation,
    dataset: str,
    config: str | None = None,
    image: str | None = None,
    label: str | None = None,
) -> Splits:
    """Its pictures, prepared and augmented as one's own.

    dataset: its name, or a folder on disk.  config: the name of its configuration, where it has several.  image, label:
    the columns, where there are several that could be meant.
    """
    data = f"huggingface/{dataset}"
    with optional("huggingface"):
        import datasets
    tables = _load(datasets, data, dataset, config, None if root == DEFAULT_ROOT else str(root))
    features = tables["train"].features
    image = _column(data, "image", image, {name for name, kind in features.items() if isinstance(kind, datasets.Image)})
    labelled = {name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    label = _column(data, "label", label, labelled or set(features) & {"label", "labels"}, set(features) - {image})
    columns = {split: list(table[label]) for split, table in tables.items()}
    for split in [split for split, column in columns.items() if split != "train" and set(column) <= {HIDDEN, None}]:
        warn(f"data {data}: its split {split} has no labels, and is left out")
        del tables[split], columns[split]
    classes, numbers = _classes(data, features[label], list(columns.values()))
    rows = zip(tables.items(), numbers, strict=True)
    sources = {split: Rows(data, table, image, labels, classes) for (split, table), labels in rows}
    return assemble(data, sources, classes, seed, how)


def _load(datasets: Any, data: str, dataset: str, config: str | None, cache: str | None) -> dict[str, Any]:
    """Split → table.  Raises InputError where it cannot be loaded, and for a dataset without a split `train`."""
    try:
        found = datasets.load_dataset(dataset, config, cache_dir=cache)
    except (OSError, ValueError, RuntimeError, ImportError, LookupError) as error:
        raise InputError(
            f"data {data}: {type(error).__name__}: {first_line(error)}; see whether the name, data.config and the "
            "network are right; one that asks for a login needs `hf auth login`"
        ) from None
    tables = {split: found[name] for split, names in NAMES.items() for name in names if name in found}
    if "train" not in tables:
        raise InputError(f"data {data}: has no split train; its splits are {', '.join(found)}")
    return tables


def _column(data: str, what: str, asked: str | None, found: set[str], allowed: set[str] | None = None) -> str:
    """The column of images or labels: the one asked for, or the only one that can be meant."""
    allowed = found if allowed is None else allowed
    if asked is None and len(found) == 1:
        return next(iter(found))
    if asked in allowed:
        return str(asked)
    said = f"{asked!r} is not" if asked is not None else f"{len(found) or 'none'} of its columns are"
    choose = ", ".join(sorted(found if asked is None and found else allowed)) or "none that it has"
    raise InputError(f"data {data}: {said} {what}s; choose data.{what} out of {choose}")


def _classes(data: str, feature: Any, columns: list[list[Any]]) -> tuple[tuple[str, ...], list[list[int]]]:
    """The names of the classes, and per split the numbers of its labels; other values than numbers are sorted.

    Raises InputError for rows without a label, and labels that are not of one kind.
    """
    kinds = {type(value) for column in columns for value in column}
    if len(kinds) != 1 or not issubclass(next(iter(kinds)), int | str | float):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(f"data {data}: its labels are of {found}; they must all be numbers, or all texts")
    if hasattr(feature, "names"):
        return tuple(feature.names), columns
    values = sorted({value for column in columns for value in column})
    if all(isinstance(value, int) for value in values):
        return tuple(str(number) for number in range(max(values) + 1)), columns
    place = {value: number for number, value in enumerate(values)}
    return tuple(map(str, values)), [[place[value] for value in column] for column in columns]
