import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.datasets import cifar10

CIFAR10 = torchvision.datasets.CIFAR10
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A tiny set in the true on-disk format; torchvision's published MD5 sums are swapped for this one's, in the test
    only, so that production code has no way round the check."""
    rng = np.random.default_rng(0)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return hashlib.md5(raw).hexdigest()

    def batch(name, count):
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        return [name, write(name, {"data": data, "labels": [i % 10 for i in range(count)], "batch_label": name})]

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}", 40) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 40)])
    meta = {"filename": "batches.meta", "key": "label_names"}
    monkeypatch.setattr(CIFAR10, "meta", {**meta, "md5": write("batches.meta", {"label_names": NAMES})})
    return tmp_path


def raw(tree, name):
    with open(tree / CIFAR10.base_folder / name, "rb") as file:
        return torch.from_numpy(pickle.load(file)["data"]).view(-1, 3, 32, 32)


def test_published_protocol(tree):
    splits = load_data("cifar10", root=tree, validation=50)
    assert splits.classes == tuple(NAMES)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [150, 50, 40]
    assert torch.equal(splits.test.images, raw(tree, "test_batch"))
    expected = raw(tree, "test_batch")[3].double() / 255
    expected -= torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    expected /= torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
    torch.testing.assert_close(splits.test[3][0].double(), expected, atol=1e-5, rtol=1e-5)
    augment = splits.train.augment
    assert (augment.pixels, augment.padding, augment.flip) == (4, "constant", True)


def test_validation_is_held_out_of_training(tree):
    splits = load_data("cifar10", root=tree, validation=50)
    assert splits.val.labels.bincount().tolist() == [5] * 10
    both = {image.numpy().tobytes() for image in torch.cat([splits.train.images, splits.val.images])}
    assert both == {image.numpy().tobytes() for i in range(1, 6) for image in raw(tree, f"data_batch_{i}")}
    assert len(both) == 200
    again, other = (load_data("cifar10", root=tree, validation=50, seed=seed) for seed in (0, 1))
    assert torch.equal(splits.val.images, again.val.images)
    assert not torch.equal(splits.val.images, other.val.images)
    assert torch.equal(splits.test.images, other.test.images)


@pytest.mark.parametrize("validation", [0, 200])
def test_bad_validation(tree, validation):
    with pytest.raises(InputError, match=f"validation {validation} must be from 1 to 199"):
        load_data("cifar10", root=tree, validation=validation)


def test_missing_data_says_what_where_and_how(tmp_path):
    with pytest.raises(InputError) as caught:
        load_data("cifar10", root=tmp_path)
    for part in (str(tmp_path / "cifar-10-batches-py"), "absent", "cifar-10-python.tar.gz", "download=true"):
        assert part in str(caught.value)


def test_changed_file_is_not_unpickled(tree):
    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('unpickled')",)

    (tree / CIFAR10.base_folder / "data_batch_2").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(InputError, match="differs from the published"):
        load_data("cifar10", root=tree)


@pytest.fixture
def binary(tmp_path, monkeypatch):
    """The same in the official binary layout, with sums of its own in the test only."""
    rng, sums = np.random.default_rng(1), {}
    (tmp_path / cifar10.BINARY).mkdir()
    for name in cifar10.BINARY_FILES:
        rows = rng.integers(0, 256, (20, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(20) % 10
        (tmp_path / cifar10.BINARY / name).write_bytes(rows.tobytes())
        sums[name] = hashlib.md5(rows.tobytes()).hexdigest()
    monkeypatch.setattr(cifar10, "BINARY_FILES", sums)
    return tmp_path


def test_the_binary_layout(binary):
    splits = load_data("cifar10", root=binary, validation=50)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [50, 50, 20]
    raw = (binary / cifar10.BINARY / "test_batch.bin").read_bytes()
    row = raw[3073 * 13 : 3073 * 14]  # label, then red, green and blue, row by row
    image, label = splits.test.images[13], splits.test.labels[13]
    assert (int(label), image[0, 0, 1], image[1, 0, 0], image[2, 31, 31]) == (3, row[2], row[1025], row[3072])
    assert torch.equal(
        load_data("cifar10", root=binary / cifar10.BINARY, validation=50).test.images, splits.test.images
    )


def test_binary_files_that_differ_are_refused(binary):
    path = binary / cifar10.BINARY / "data_batch_3.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"data_batch_3.bin differs from the published file .* again"):
        load_data("cifar10", root=binary)
    path.unlink()
    with pytest.raises(InputError, match=r"looked for .*data_batch_3.bin: No such file"):
        load_data("cifar10", root=binary)


def test_normalisation_of_a_checkpoint(binary):
    """By name for both, by numbers, and of the training images, without those held out."""
    images = load_data("cifar10", root=binary, validation=50).test.images[:1].double() / 255

    def first(**options):
        splits = load_data("cifar10", root=binary, validation=50, **options)
        mean, std = (torch.tensor(part, dtype=torch.float64).view(3, 1, 1) for part in splits.normalisation)
        torch.testing.assert_close(splits.test[0][0].double(), (images[0] - mean) / std, atol=1e-5, rtol=1e-5)
        return splits

    assert first(mean="imagenet").normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert first(std="imagenet", mean=[0.5, 0.4, 0.3]).normalisation == ((0.5, 0.4, 0.3), (0.229, 0.224, 0.225))
    assert first(mean=0.5, std=0.25).normalisation == ((0.5,) * 3, (0.25,) * 3)
    auto = first(mean="auto")
    pixels = auto.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(auto.normalisation[0]).double(), pixels.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(auto.normalisation[1]).double(), pixels.std((0, 2, 3), correction=0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.5, 0.5]}, r"mean \[0.5, 0.5\] is not 3 numbers; give a number per channel"),
        ({"mean": "imagnet"}, r"mean 'imagnet' is unknown; give .* imagenet"),
        ({"std": [0.2, 0.0, 0.2]}, r"std \[0.2, 0.0, 0.2\] must be above 0"),
        ({"std": [0.2, float("nan"), 0.2]}, "is not 3 numbers"),
    ],
)
def test_bad_normalisation(binary, options, message):
    with pytest.raises(InputError, match=message):
        load_data("cifar10", root=binary, validation=50, **options)
