"""ImageNet: its splits, and images as published evaluations see them."""

import os
import pickle

import lightning
import numpy as np
import pytest
import torch
from helpers.batches import Recorder, epoch_of
from helpers.imagenet import CLASSES, KINDS, file_of, load, make
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from norton.common.errors import InputError
from norton.data import folders
from norton.data.datamodule import ClassificationData


def as_published(path):
    """Shorter side to 256, bilinear; the 224 pixels in the middle; in [0, 1], normalised per channel."""
    image = Image.open(path).convert("RGB")
    width, height = image.size
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - 224) / 2) for side in size)
    image = image.crop((left, top, left + 224, top + 224))
    array = (np.asarray(image, dtype=np.float64) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(array).permute(2, 0, 1)


def test_evaluation_as_published(tree):
    splits = load(tree)
    assert splits.classes == CLASSES
    assert splits.input_size == (3, 224, 224)
    forms = set()
    for part in (splits.test, splits.val, splits.calibration):
        for index in range(len(part)):
            image, label = part[index]
            path = file_of(part, index)
            forms.add((path.suffix, *Image.open(path).size, Image.open(path).mode))
            # Pillow resamples in both, so only the arithmetic of float32 differs: values are below 3.
            torch.testing.assert_close(image.double(), as_published(path), atol=2e-6, rtol=0)
            assert image.dtype == torch.float32
            assert image.is_contiguous()
            assert type(image) is torch.Tensor
            assert CLASSES[label] == path.parent.name
    assert forms == {(f".{suffix}", *size, mode) for size, mode, suffix in KINDS}


def test_the_test_set_is_val_in_order(tree):
    test = load(tree).test
    files = [str(file_of(test, index).relative_to(tree)) for index in range(len(test))]
    assert files == sorted(str(path.relative_to(tree)) for path in tree.glob("val/*/*"))


def test_validation_is_held_out_of_training(tree):
    splits = load(tree)
    train, val = ({bytes(path) for path in part.paths} for part in (splits.train, splits.val))
    assert not train & val
    assert {path.decode() for path in train | val} == {
        str(p.relative_to(tree / "train")) for p in tree.glob("train/*/*")
    }
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [16, 8, 12]
    assert splits.val.labels.bincount().tolist() == [2] * 4
    again, other = load(tree), load(tree, seed=1)
    assert np.array_equal(splits.val.paths, again.val.paths)
    assert set(splits.val.paths) != set(other.val.paths)
    assert np.array_equal(splits.test.paths, other.test.paths)


def test_calibration_is_train_without_augmentation_and_mixes_the_classes(tree):
    splits = load(tree)
    assert np.array_equal(splits.calibration.paths, splits.train.paths)
    assert splits.calibration.labels[:8].bincount(minlength=4).tolist() == [2] * 4
    before = splits.calibration[0][0]
    splits.calibration.set_epoch(3)
    assert torch.equal(before, splits.calibration[0][0])
    images = ClassificationData("imagenet", 3, root=tree, validation=8, num_workers=2).calibration_images(7)
    assert images.shape == (7, 3, 224, 224)
    assert torch.equal(images[5], splits.calibration[5][0])


def test_workers_give_the_same_batches(tree):
    alone, helped = make(tree).train_dataloader(), make(tree, 2).train_dataloader()
    seen = []
    for epoch in (0, 2):
        images, labels = epoch_of(alone, epoch)
        again, same = epoch_of(helped, epoch)
        assert torch.equal(images, again)
        assert torch.equal(labels, same)
        seen.append(images[labels.argsort(stable=True)])
    assert not torch.equal(*seen)


@pytest.mark.filterwarnings("ignore")
def test_resumed_training_sees_the_same_batches(tree, tmp_path):
    def train(epochs, resume=None):
        module, data = Recorder(), make(tree, 2)
        keep = ModelCheckpoint(tmp_path, save_last=True, enable_version_counter=False)
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            callbacks=[keep],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_train_batches=2,
            limit_val_batches=1,
        )
        trainer.fit(module, data.train_dataloader(), data.val_dataloader(), ckpt_path=resume, weights_only=True)
        return module.seen

    whole = train(2)
    assert len({digest for _, digest in whole}) == 4
    train(1)
    assert train(2, tmp_path / "last.ckpt") == whole[2:]


def test_workers_do_not_list_files_again(tree, tmp_path, monkeypatch):
    def spy(*arguments, **named):
        with open(tmp_path / "listed", "a") as file:  # a list would not come back from a worker
            file.write(f"{os.getpid()}\n")
        return make_dataset(*arguments, **named)

    make_dataset = folders.make_dataset
    monkeypatch.setattr(folders, "make_dataset", spy)
    data = make(tree, 2)
    labels = torch.cat([labels for _, labels in data.test_dataloader()])
    assert torch.equal(labels, data.splits.test.labels)
    assert (tmp_path / "listed").read_text().split() == [str(os.getpid())] * len(CLASSES)


def test_pickles(tree):
    train = load(tree).train
    train.set_epoch(1)
    again = pickle.loads(pickle.dumps(train))  # how workers get it where processes are not forked
    assert torch.equal(again[7][0], train[7][0])


def test_index_beyond_the_end(tree):
    with pytest.raises(IndexError):
        load(tree).test[12]


def test_first_images_of_a_split(tree):
    data = make(tree)
    assert torch.equal(data.images("test", 6)[5], data.splits.test[5][0])
    with pytest.raises(InputError, match="13 test images asked for; there are 1 to 12"):
        data.images("test", 13)


def test_evaluation_does_not_list_training_images(tree, monkeypatch):
    listed = []

    def spy(folder, *arguments, **named):
        listed.append(folder)
        return make_dataset(folder, *arguments, **named)

    make_dataset = folders.make_dataset
    monkeypatch.setattr(folders, "make_dataset", spy)
    splits = load(tree)
    assert listed == []
    assert len(splits.test) == 12
    assert set(listed) == {tree / "val"}
    assert (len(splits.val), len(splits.train)) == (8, 16)
    assert listed == [tree / "val"] * 4 + [tree / "train"] * 4
