"""Augmentations by name and of one's own, drawn by (seed, epoch, index) alone."""

import pytest
import torch

from norton.common.errors import InputError
from norton.data.augmenting import AUGMENTATIONS, Augmentation
from norton.data.preparing import Preparation

pytestmark = pytest.mark.quick

OWN = """
import torch

def darker(image):
    return image.float() / 255 * torch.rand(())

def square(image):
    return image[:, :10]

def numbers(image):
    return image.numpy()
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_augmentations.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "own_augmentations"


def images(prepare, count=8):
    return torch.randint(0, 256, (count, prepare.channels, *prepare.box), dtype=torch.uint8)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("prepare", [Preparation(24, 24, 1), Preparation(24, 32), Preparation(70, 70)], ids=str)
def test_every_name_keeps_size_and_depends_on_the_key_alone(name, prepare):
    augment, given = Augmentation("x", name, prepare), images(prepare)
    before = torch.get_rng_state()
    found = torch.stack([augment(image, 3, 1, number) for number, image in enumerate(given)])
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == (8, prepare.channels, prepare.height, prepare.width) and found.dtype == torch.uint8
    torch.rand(1)
    assert torch.equal(augment(given[5], 3, 1, 5), found[5])
    again = torch.stack([augment(image, 3, 2, number) for number, image in enumerate(given)])
    assert not torch.equal(again, found)


def test_crop_and_flip_of_small_images_are_also_drawn_together():
    prepare = Preparation(32, 32)
    assert Augmentation("x", ["crop", "flip"], prepare).together.pixels == 4  # as published for CIFAR-10
    assert Augmentation("x", "flip", prepare).together.pixels == 0
    for names, other in (["crop", Preparation(70, 70)], [["flip", "rotate"], prepare], ["none", prepare]):
        assert Augmentation("x", names, other).together is None


def test_ones_own(own):
    prepare = Preparation(16, 16)
    augment, image = Augmentation("x", [f"{own}.darker"], prepare), images(prepare)[0]
    darker = augment(image, 0, 0, 0)
    assert darker.max() <= 1 and torch.equal(darker, augment(image, 0, 0, 0))
    flip = Augmentation("x", "torchvision.transforms.v2.RandomHorizontalFlip", prepare)
    assert {flip(image, 0, 0, number).eq(image).all().item() for number in range(9)} == {True, False}
    for name, message in (("square", r"an image of \(3, 10, 16\)"), ("numbers", "a ndarray")):
        with pytest.raises(InputError, match=f"{name} gives {message}; it should give"):
            Augmentation("x", f"{own}.{name}", prepare)(image, 0, 0, 0)
