"""Folders of a few small images, laid out as ImageNet's."""

import numpy as np
from PIL import Image

from norton.data import load_data
from norton.data.datamodule import ClassificationData

CLASSES = ("n01", "n02", "n03", "n04")
TRAIN, TEST = 6, 3  # images of a class
# Width and height; Pillow's mode; file type: what ImageNet has among its plain colour photographs.
KINDS = [
    ((300, 260), "RGB", "JPEG"),
    ((231, 411), "RGB", "JPEG"),
    ((97, 61), "RGB", "jpg"),
    ((500, 333), "L", "JPEG"),
    ((281, 257), "CMYK", "JPEG"),
    ((240, 320), "P", "png"),
]


def write_image(path, size, mode, seed):
    """Smooth noise, so that resampling and cropping matter but JPEG loses little."""
    noise = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(path)


def write_tree(root, folders=(("train", TRAIN), ("val", TEST)), classes=CLASSES):
    for number, (folder, count) in enumerate(folders):
        for label, name in enumerate(classes):
            (root / folder / name).mkdir(parents=True)
            for i in range(count):
                size, mode, suffix = KINDS[(i + label) % len(KINDS)]
                write_image(root / folder / name / f"{folder}_{i}.{suffix}", size, mode, 1000 * number + 10 * label + i)
    return root


def load(root, seed=0, validation=8):
    return load_data("imagenet", root=root, seed=seed, validation=validation)


def file_of(part, index):
    return part.folders.path / part.paths[index].decode()


def make(tree, workers=0, **options):
    return ClassificationData("imagenet", 5, root=tree, validation=8, num_workers=workers, **options)
