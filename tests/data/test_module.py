"""What a function of the user's own returns as data."""

import pytest
import torch
from torch.utils.data import Subset

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.wrapping import labels_of

pytestmark = pytest.mark.quick

OWN = """
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from norton.data import load_data


class Pictures(Dataset):
    classes = ["dark", "bright"]

    def __init__(self, count, kind="picture"):
        self.count, self.kind, self.read = count, kind, 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.read += 1
        if not 0 <= index < self.count:
            raise IndexError(index)
        picture = Image.new("RGB", (20, 20), (200 * (index % 2),) * 3)
        return (picture if self.kind == "picture" else 3), index % 2


def tensors(count=30, classes=3, size=8):
    labels = torch.arange(count) % classes
    return TensorDataset(labels.view(-1, 1, 1, 1).expand(-1, 1, size, size).float(), labels)


def drawn():
    return tensors(), None, None


def by_class():
    images, labels = tensors(12).tensors
    order = labels.argsort()
    return TensorDataset(images[order], labels[order]), tensors(6), tensors(9)


def own_splits():
    return tensors(12), tensors(6), tensors(9)


def pictures(root, seed):
    assert (root.name, seed) == ("here", 7)
    return Pictures(20), Pictures(4), Pictures(6)


def whole():
    return load_data("mnist5k")


def two():
    return tensors(), tensors()


def empty():
    return tensors(), tensors(0), None


def labels():
    return TensorDataset(torch.rand(4, 1, 8, 8), torch.rand(4)), None, None


def odd():
    return Pictures(8, "numbers"), None, None


def more():
    return tensors(), tensors(classes=4), None


def names():
    other = Pictures(4)
    other.classes = ["night", "day"]
    return Pictures(8), other, None


def iterable():
    return iter([]), None, None


def asking(folder, root, size=8, *others, **more):
    return two()


def failing(seed):
    return {}["images"]
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def load(name, **options):
    return load_data("module", module=f"own_data.{name}", **options)


def test_tensors_are_taken_as_they_are():
    splits = load("own_splits", mean=[0.3], std=[0.2])
    assert splits.classes == ("0", "1", "2") and splits.input_size == (1, 8, 8)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [12, 6, 9]
    assert splits.test[4][0].unique().tolist() == [1]
    assert splits.normalisation == ((0.3,), (0.2,))
    assert load("own_splits").normalisation is None


def test_calibration_images_are_of_all_classes_where_they_are_listed_one_by_one():
    splits = load_data("module", module="own_data.by_class")
    for part in (splits.train, splits.calibration):  # BatchNorm is estimated from the first of the former
        assert {int(part[place][1]) for place in range(3)} == {0, 1, 2} and len(part) == 12


def test_missing_splits_are_drawn():
    splits = load("drawn", validation=3, test=0.2)
    indices = [part.indices for part in (splits.train, splits.val, splits.test)]
    assert [len(part) for part in indices] == [21, 3, 6]
    assert sorted(index for part in indices for index in part) == list(range(30))
    assert splits.calibration.indices == splits.train.indices


def test_pictures_are_prepared(tmp_path):
    splits = load("pictures", root=tmp_path / "here", seed=7, size=16, mean=0.5, std=0.5)
    assert splits.classes == ("dark", "bright") and splits.input_size == (3, 16, 16)
    assert {(image.max().item() > 0, label.item()) for image, label in splits.test} == {(False, 0), (True, 1)}


def test_splits_are_taken_whole():
    assert load("whole").num_classes == 10


def test_labels_are_not_asked_for_one_by_one():
    import own_data

    pictures = own_data.Pictures(9)
    pictures.targets = [index % 2 for index in range(9)]
    assert labels_of("x", Subset(pictures, [8, 1])).tolist() == [0, 1] and pictures.read == 2  # one of each class
    pictures.targets = [5] * 9  # what a transform of targets has changed
    assert labels_of("x", pictures).tolist() == [0, 1] * 4 + [0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("two", {}, r"own_data\.two returned 2 things; it must be \(train, val, test\)"),
        ("empty", {}, "val has no images; return None"),
        ("labels", {}, "item 0 is no pair of an image and the number of its class"),
        ("odd", {"size": 8}, r"image \d is a int; give a picture"),
        ("more", {}, "labels are 0 to 3, of 3 classes; they must be 0 to 2"),
        ("names", {"size": 8}, "val has the classes night, day, train has dark, bright"),
        ("iterable", {}, r"own_data\.iterable: train is a list_iterator; all must be map-style"),
        ("drawn", {"size": 16, "channels": 1}, r"its images are of .* \(1, 8, 8\), where \(1, 16, 16\) was asked for"),
        ("drawn", {"augment": "flip"}, "augment is for pictures"),
        ("drawn", {"mean": "auto"}, "its images are normalised already"),
        ("drawn", {"validation": 40}, "none is left to train on"),
        ("own_splits", {"test": 3}, "has test images of its own"),
        ("asking", {}, r"own_data\.asking asks for folder; it is called with root and seed alone"),
        ("failing", {}, r"own_data\.failing failed: KeyError: 'images'; HYDRA_FULL_ERROR=1 shows where"),
        ("nothing", {}, "own_data has nothing callable of the name 'nothing'"),
    ],
)
def test_bad_functions(name, options, message):
    with pytest.raises(InputError, match=message) as caught:
        splits = load(name, **options)
        splits.train[0]
    assert "\n" not in str(caught.value)


def test_no_function():
    with pytest.raises(InputError, match=r"no function; give data\.module=my\.module\.function"):
        load_data("module")


def test_no_augmentation_is_drawn_for_tensors():
    assert torch.equal(load("drawn").train[0][0], load("drawn").calibration[0][0])
