"""Data of torchvision and of `datasets`, written in their own formats."""

import struct

import numpy as np
import pytest
import torch
import torchvision.datasets
from helpers.own_images import CLASSES, write_classes

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.datasets.huggingface import _classes
from norton.data.datasets.torchvision import WAYS, find, make
from norton.data.wrapping import labels_of

pytestmark = pytest.mark.quick

RANDOM = np.random.default_rng(0)


def write_mnist(root, counts):
    """The four files of FashionMNIST, unpacked: big-endian headers, then bytes."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in counts.items():
        images = RANDOM.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())
    return root


def test_fashion_mnist(tmp_path):
    write_mnist(tmp_path, {"train": 100, "t10k": 20})
    splits = load_data("torchvision/fashion_mnist", root=tmp_path, size=32, channels=1, mean="auto", augment="none")
    assert splits.classes[0] == "T-shirt/top" and splits.input_size == (1, 32, 32)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [90, 10, 20]
    assert splits.val.labels.bincount().tolist() == [1] * 10
    original = torchvision.datasets.FashionMNIST(tmp_path, train=False)
    mean, std = (part[0] for part in splits.normalisation)
    for number, (image, label) in enumerate(splits.test):
        pixels = np.asarray(original[number][0].resize((32, 32), 2)) / 255
        np.testing.assert_allclose(image[0], (pixels - mean) / std, atol=1e-5)
        assert label == original[number][1] == number % 10
    grey = load_data("torchvision/FashionMNIST", root=tmp_path, size=28)
    image = grey.test[0][0] * torch.tensor(grey.normalisation[1]).view(3, 1, 1)
    assert torch.allclose((image[0] - image[1]).std(), torch.tensor(0.0), atol=1e-5)  # three equal channels


@pytest.mark.parametrize("name", WAYS)
def test_every_one_is_made_as_its_constructor_takes_it(name, tmp_path):
    """Without files each says what it misses: its arguments were right."""
    for way in WAYS[name].values():
        with pytest.raises(InputError, match=r"data x: looked in .*; (fetch it with|install)") as caught:
            make("x", name, tmp_path / "nowhere", way, False)
        assert "\n" not in str(caught.value)


def test_names():
    assert find("fashion_mnist") == find("Fashion-MNIST") == "FashionMNIST"
    assert find("oxford_iiit_pet") == "OxfordIIITPet"
    with pytest.raises(InputError, match=r"'coco' is none of .* choose data\.name out of C"):
        find("coco")


def test_downloads_that_fail(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(InputError, match=r"name resolution.*see whether the network is there, or put its files"):
        load_data("torchvision/cifar100", root=tmp_path, size=32, download=True)
    with pytest.raises(InputError, match="torchvision cannot fetch it; put its files into"):
        load_data("torchvision/fer2013", root=tmp_path, size=32, download=True)


def test_wrong_options_of_a_constructor(tmp_path):
    with pytest.raises(InputError, match=r"data torchvision/svhn: SVHN\(.*'split': 'some'.*; mend data\.options"):
        load_data("torchvision/svhn", root=tmp_path, size=32, options={"split": "some"})


@pytest.fixture
def tables(tmp_path):
    pytest.importorskip("datasets")
    write_classes(tmp_path / "own" / "train", dict.fromkeys(CLASSES, 10))
    write_classes(tmp_path / "own" / "test", dict.fromkeys(CLASSES, 4), seed=1)
    return tmp_path


def test_a_folder_by_the_library_datasets(tables):
    options = {"root": tables / "cache", "size": 16}
    splits = load_data(f"huggingface/{tables / 'own'}", **options)
    assert splits.classes == CLASSES
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [27, 3, 12]
    ours = load_data("folder", root=tables / "own", size=16)
    for one, other in zip(splits.test, ours.test, strict=True):
        assert torch.equal(one[0], other[0]) and one[1] == other[1]
    with pytest.raises(InputError, match=r"'photo' is not images; choose data\.image out of image"):
        load_data(f"huggingface/{tables / 'own'}", image="photo", **options)


def test_what_the_library_datasets_cannot_load(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"data huggingface/\./nowhere: .*see whether the name") as caught:
        load_data("huggingface/./nowhere", root=tmp_path, size=16)
    assert "\n" not in str(caught.value)


class Transformed(torch.utils.data.Dataset):
    """Keeps the labels 0 to 3, and gives whether they are above 0; or another one for the third of them alone."""

    def __init__(self, change=None, target_transform=None):
        self.targets, self.change, self.target_transform = [0, 1, 2, 3] * 3, change, target_transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, number):
        label = self.targets[number]
        label = self.change(label) if self.change else label
        label = self.target_transform(label) if self.target_transform else label
        return np.zeros((8, 8, 3), np.uint8), label


@pytest.mark.parametrize("how", ["change", "target_transform"])
def test_labels_that_are_changed_on_the_way_are_those_that_count(how):
    """Report: of labels that a dataset keeps only the first was compared."""
    found = labels_of("mine", Transformed(**{how: lambda label: int(label > 1)}))
    assert found.tolist() == [0, 0, 1, 1] * 3
    assert labels_of("mine", Transformed()).tolist() == [0, 1, 2, 3] * 3


@pytest.mark.parametrize("columns, said", [
    ([["cat", None]], "its labels are of NoneType, str; they must all be numbers, or all texts"),
    ([[1, "dog"]], "its labels are of int, str"),
    ([[[1, 2]]], "its labels are of list"),
])  # fmt: skip
def test_labels_of_no_one_kind(columns, said):
    with pytest.raises(InputError, match=said):
        _classes("huggingface/x", None, columns)
