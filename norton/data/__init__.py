"""Datasets by name, split into train, validation and test.

`splits.py` holds the contract, `images.py` the in-memory dataset, `datasets/` one file per dataset, `datamodule.py`
what a Lightning trainer wants. Lightning is imported by the last one only.
"""

from norton.common.registry import import_submodules
from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.splits import DATASETS, Splits, generator, load_data, stratified_order

import_submodules("norton.data.datasets")

__all__ = ["DATASETS", "ImageTensors", "ShiftAndFlip", "Splits", "generator", "load_data", "stratified_order"]
