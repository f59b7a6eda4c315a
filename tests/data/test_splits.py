import subprocess
import sys

import pytest
import torch

from norton.common.errors import InputError
from norton.data import DATASETS, ImageTensors, ShiftAndFlip, load_data, stratified_order

EMBEDDED = ["clutter", "mnist5k"]


@pytest.fixture(scope="module", params=EMBEDDED)
def splits(request):
    return load_data(request.param, seed=0)


def parts(splits):
    return {name: getattr(splits, name) for name in ("train", "val", "test")}


def test_shapes_and_types(splits):
    assert splits.num_classes == len(splits.classes) == 10
    for part in parts(splits).values():
        assert part.images.dtype == torch.uint8
        assert part.images.shape == (len(part), *splits.input_size)
        assert part.labels.dtype == torch.int64
        image, label = part[len(part) - 1]
        assert image.dtype == torch.float32
        assert image.shape == splits.input_size
        assert label == part.labels[-1]


def test_full_range_is_used(splits):
    assert splits.train.images.max() > 240
    assert splits.train.images.min() < 15


def test_classes_are_balanced(splits):
    for part in parts(splits).values():
        assert part.labels.bincount().unique().tolist() == [len(part) // 10]


def test_normalised(splits):
    pixels, sums, squares = 0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for first in range(0, count := len(splits.calibration), 500):  # all at once they would fill memory
        numbers = range(first, min(first + 500, count))
        images = torch.stack([image for image, _ in splits.calibration.__getitems__(numbers)]).double()
        pixels += images[:, 0].numel()
        sums, squares = sums + images.sum((0, 2, 3)), squares + images.square().sum((0, 2, 3))
    mean = sums / pixels
    assert mean.abs().max() < 0.02
    assert ((squares / pixels - mean**2).sqrt() - 1).abs().max() < 0.02


def test_no_picture_in_two_splits(splits):
    pictures = [{image.numpy().tobytes() for image in part.images} for part in parts(splits).values()]
    assert not pictures[0] & pictures[1] | pictures[0] & pictures[2] | pictures[1] & pictures[2]


@pytest.mark.parametrize(("name", "options"), [("clutter", {"copies": (1, 1, 1)}), ("mnist5k", {})])
def test_seed_decides(name, options):
    first, again, other = (load_data(name, seed=seed, **options) for seed in (3, 3, 4))
    for split in ("train", "val", "test"):
        one, two, three = (getattr(s, split) for s in (first, again, other))
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert not torch.equal(one.images, three.images)


def test_only_training_is_augmented(splits):
    for dataset in (splits.val, splits.test, splits.calibration):
        assert dataset.augment is None
    plain = splits.calibration[0][0]
    epochs = []
    for epoch in range(4):
        splits.train.set_epoch(epoch)
        epochs.append(splits.train[0][0])
    assert torch.equal(splits.calibration.images, splits.train.images)
    assert any(not torch.equal(image, plain) for image in epochs)
    assert any(not torch.equal(image, epochs[0]) for image in epochs)


def test_stratified_prefixes():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    order = stratified_order(labels, 0)
    assert order.sort().values.tolist() == list(range(100))
    for size in range(1, 101):
        expected = size * torch.tensor([0.7, 0.2, 0.1])
        assert ((labels[order[:size]].bincount(minlength=3) - expected).abs() <= 1).all()


def make_images(count=40, **options):
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageTensors(images, torch.arange(count), mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3), **options)


def test_normalisation_is_per_channel():
    data = make_images()
    plain = data.images[7].double() / 255
    expected = (plain - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    torch.testing.assert_close(data[7][0].double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["constant", "reflect"])
def test_augmentation_is_a_crop_of_the_padded_image(padding):
    augment = ShiftAndFlip(3, padding, flip=True)
    images = make_images().images
    draws = augment.draw(len(images), torch.Generator().manual_seed(1))
    assert draws[:, :2].unique().tolist() == list(range(7))
    assert draws[:, 2].unique().tolist() == [0, 1]
    padded = torch.nn.functional.pad(images, [3] * 4, mode=padding)
    for image, source, (row, column, mirror) in zip(augment(images, draws), padded, draws.tolist(), strict=True):
        crop = source[:, row : row + 8, column : column + 8]
        assert torch.equal(image, crop.flip(2) if mirror else crop)


def test_augmentation_ignores_batch_and_global_generator():
    data = make_images(augment=ShiftAndFlip(2, flip=True), seed=5)
    data.set_epoch(3)
    whole = torch.stack([image for image, _ in data.__getitems__(range(40))])
    torch.manual_seed(123)
    assert torch.equal(torch.stack([data[index][0] for index in range(40)]), whole)


def test_unknown_dataset_names_the_known():
    with pytest.raises(InputError, match="clutter"):
        load_data("mnist")


def test_unknown_option():
    with pytest.raises(InputError, match=r"'clutter' has no option copy; it has copies"):
        load_data("clutter", copy=3)


def test_negative_seed():
    with pytest.raises(InputError, match="-1"):
        load_data("mnist5k", seed=-1)


def test_import_leaves_lightning_alone():
    code = "import sys, norton.data; print('lightning' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_registry_has_the_names():
    assert {"clutter", "mnist5k", "cifar10"} <= set(DATASETS)
