"""Random crops and mirrors of training images."""

import numpy as np
import pytest
import torch
from helpers.imagenet import load
from PIL import Image

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """Equal pictures whose red is the column and green the row, so that a crop says where it comes from."""
    root = tmp_path_factory.mktemp("gradients")
    red, green = np.meshgrid(np.linspace(0, 255, 360), np.linspace(0, 255, 288))
    picture = Image.fromarray(np.stack([red, green, 0 * red], 2).round().astype(np.uint8))
    for path in ("train/a/1.png", "train/a/2.png", "train/a/3.png", "val/a/1.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / path)
    return root


def crop_of(image):
    """(left, top, width, height) as fractions of the gradient picture; a negative width is mirrored."""
    image = (
        image * torch.tensor([0.229, 0.224, 0.225])[:, None, None] + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    )
    columns, rows = image[0].mean(0), image[1].mean(1)
    width, height = ((values[-12] - values[11]).item() * 224 / 201 for values in (columns, rows))  # away from the edges
    return columns.min().item(), rows.min().item(), width, height


def test_training_crops_and_mirrors(gradients):
    train = load(gradients, validation=1).train
    crops = []
    for epoch in range(100):
        train.set_epoch(epoch)
        image = train[0][0]
        assert image.shape == (3, 224, 224)
        crops.append(crop_of(image))
    left, top, width, height = torch.tensor(crops).T
    area, aspect = width.abs() * height, width.abs() * 360 / (height * 288)
    assert 0.07 < area.min() < 0.2
    assert 0.85 < area.max() < 1.02
    assert 0.73 < aspect.min() < 0.85
    assert 1.2 < aspect.max() < 1.36
    assert 30 < (width < 0).sum() < 70
    assert (height > 0).all()
    for corner in (left, top):
        assert corner.min() < 0.03
        assert corner.max() > 0.3


def test_augmentation_depends_on_seed_epoch_and_index_alone(gradients):
    train, resumed, other = (load(gradients, seed, validation=1).train for seed in (0, 0, 1))
    epochs = []
    for epoch in range(3):
        train.set_epoch(epoch)
        epochs.append(torch.stack([train[0][0], train[1][0]]))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    resumed.set_epoch(2)
    assert torch.equal(resumed[1][0], epochs[2][1])
    assert torch.equal(resumed[-2][0], epochs[2][0])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(epochs[2][0], epochs[2][1])
    assert not torch.equal(epochs[2], epochs[1])
    assert not torch.equal(load(gradients, validation=1).train[0][0], epochs[2][0])
    other.set_epoch(2)
    assert not torch.equal(other[0][0], epochs[2][0])
