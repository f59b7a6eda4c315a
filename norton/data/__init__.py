"""Datasets by name, split into train, validation and test.

`splits.py` holds the contract: a dataset is a function of a folder and a seed that gives `Splits`, a file in
`datasets/` each, which registers itself.  `images.py` keeps images in memory and augments them by seed and epoch.
Pictures of any kind are read by `pictures.py`, from class folders (`folders.py`) or other libraries (`wrapping.py`),
cut to a network's size by `preparing.py`, augmented by `augmenting.py`, normalised by `normalising.py`, and made splits
by `assembling.py`.  `datamodule.py` offers a dataset as a Lightning trainer wants it, with the calibration images that
compression asks for.  Only the last one imports Lightning.

May import `norton.common` alone: data know nothing of networks.  `norton.training` trains on them, `norton.cli` opens
those that settings name; the rooms that compress take tensors of images.
"""

from norton.common.registry import import_submodules
from norton.data.images import ImageTensors, ShiftAndFlip
from norton.data.splits import DATASETS, Splits, generator, load_data, stratified_order

import_submodules("norton.data.datasets")

__all__ = ["DATASETS", "ImageTensors", "ShiftAndFlip", "Splits", "generator", "load_data", "stratified_order"]
