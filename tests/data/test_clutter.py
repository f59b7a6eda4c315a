import pytest
import torch

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.datasets import clutter
from norton.data.datasets.mnist5k import SIZES, split_digits


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_disjoint(seed):
    chosen = split_digits(seed)
    assert {split: len(index) for split, index in chosen.items()} == SIZES
    assert torch.cat(list(chosen.values())).sort().values.tolist() == list(range(5000))


def test_photograph_regions_share_no_pixel():
    taken = {name: torch.zeros(image.shape[1:], dtype=torch.int) for name, image in clutter.photographs().items()}
    for split in SIZES:
        for name, (top, left, bottom, right) in clutter.regions(split).items():
            assert min(bottom - top, right - left) >= 2 * clutter.SIZE
            taken[name][top:bottom, left:right] += 1
    for count in taken.values():
        assert count.max() == 1


def test_patches_stay_in_their_region(monkeypatch):
    marked = {}
    for number, split in enumerate(SIZES):
        for name, (top, left, bottom, right) in clutter.regions(split).items():
            image = marked.setdefault(name, torch.full_like(clutter.photographs()[name], 255))
            image[:, top:bottom, left:right] = 50 * number
    monkeypatch.setattr(clutter, "photographs", lambda: marked)
    for number, split in enumerate(SIZES):
        seen = clutter.patches(300, split, torch.Generator().manual_seed(0))
        torch.testing.assert_close(seen, torch.full_like(seen, 50 * number / 255))


def test_default_sizes_and_copies():
    splits = load_data("clutter")
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [10500, 1000, 2000]
    assert torch.equal(splits.train.labels[:3500], splits.train.labels[3500:7000])
    assert not torch.equal(splits.train.images[:3500], splits.train.images[3500:7000])


@pytest.mark.parametrize("copies", [(3, 2), (1, 0, 1)])
def test_bad_copies(copies):
    with pytest.raises(InputError, match="copies"):
        load_data("clutter", copies=copies)


def test_digits_stand_out():
    """Seen through its own coverage, a digit differs from the patch under it by the contrast asked for."""
    rng = torch.Generator().manual_seed(0)
    background = clutter.patches(1000, "train", rng)
    colour = clutter.colours(background, 0.3, rng)
    distance = (colour[:, :, 0, 0] - background.mean((2, 3))).norm(dim=1)
    assert (distance >= 0.3).float().mean() > 0.99


def test_missing_photograph(monkeypatch):
    monkeypatch.setattr(clutter, "PHOTOGRAPHS", {"scikit-image": ("skimage", "data", ("absent.png",))})
    clutter.photographs.cache_clear()
    with pytest.raises(InputError, match=r"absent\.png of scikit-image is missing: looked for .*pip install"):
        clutter.photographs()
