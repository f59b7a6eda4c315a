import hashlib
import pickle

import numpy as np
import pytest
import torch
import torchvision

from norton.common.errors import InputError
from norton.data import load_data

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
