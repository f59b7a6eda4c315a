import os
import pickle
import shutil

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from test_datamodule import Recorder, epoch_of

from norton.common.errors import InputError
from norton.data import load_data
from norton.data.datamodule import ClassificationData
from norton.data.datasets import imagenet

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


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture
def own_tree(tree, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(tree, tmp_path / "tree")


def load(root, seed=0, validation=8):
    return load_data("imagenet", root=root, seed=seed, validation=validation)


def file_of(part, index):
    return part.folders.path / part.paths[index].decode()


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


def make(tree, workers=0, **options):
    return ClassificationData("imagenet", 5, root=tree, validation=8, num_workers=workers, **options)


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

    make_dataset = imagenet.make_dataset
    monkeypatch.setattr(imagenet, "make_dataset", spy)
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

    make_dataset = imagenet.make_dataset
    monkeypatch.setattr(imagenet, "make_dataset", spy)
    splits = load(tree)
    assert listed == []
    assert len(splits.test) == 12
    assert set(listed) == {tree / "val"}
    assert (len(splits.val), len(splits.train)) == (8, 16)
    assert listed == [tree / "val"] * 4 + [tree / "train"] * 4


def says(error, *parts):
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("imagenet: ")
    for part in parts:
        assert str(part) in str(error.value)


@pytest.mark.parametrize("absent, used", [("train", ("train", "val", "calibration")), ("val", ("test",))])
@pytest.mark.parametrize("use", [len, lambda part: part[0]])
def test_one_folder_may_be_absent_until_it_is_used(own_tree, absent, used, use):
    shutil.rmtree(own_tree / absent)
    splits = load(own_tree)
    assert splits.classes == CLASSES
    for split in ("train", "val", "test", "calibration"):
        part = getattr(splits, split)
        if split in used:
            with pytest.raises(InputError) as caught:
                use(part)
            says(caught, own_tree / absent, "No such file", "one folder per class", "set root")
        else:
            use(part)


def test_missing_root(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path / "nowhere")
    says(caught, tmp_path / "nowhere", "train and val", "no such folder", "one folder per class", "set root")


def test_neither_folder(tmp_path):
    (tmp_path / "ILSVRC").mkdir()
    (tmp_path / "train.tar").touch()
    with pytest.raises(InputError) as caught:
        load(tmp_path)
    says(caught, tmp_path, "train and val", "2 entries (ILSVRC/, train.tar)", "one folder per class", "set root")


def test_root_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder"):
        load(tmp_path / "file")


@pytest.mark.parametrize("beside", [True, False])
def test_flat_folder(own_tree, beside):
    for path in list((own_tree / "val").glob("*/*")):
        path.rename(own_tree / "val" / f"{path.parent.name}_{path.name}")
    if not beside:
        for name in CLASSES:
            (own_tree / "val" / name).rmdir()
    with pytest.raises(InputError) as caught:
        load(own_tree)
    says(caught, own_tree / "val", "12 images directly inside", "one folder per class", "move each image")


def test_no_class_folders(own_tree):
    shutil.rmtree(own_tree / "train")
    (own_tree / "train").mkdir()
    (own_tree / "train" / "n01.tar").touch()
    splits = load(own_tree)
    with pytest.raises(InputError) as caught:
        len(splits.train)
    says(caught, own_tree / "train", "1 entries (n01.tar)", "one folder per class", "unpack")


@pytest.mark.parametrize("folder, split", [("train", "calibration"), ("val", "test")])
def test_empty_class(own_tree, folder, split):
    for path in (own_tree / folder / "n03").iterdir():
        path.unlink()
    (own_tree / folder / "n03" / "notes.txt").touch()
    splits = load(own_tree)
    with pytest.raises(InputError) as caught:
        len(getattr(splits, split))
    says(caught, own_tree / folder / "n03", "found none", ".jpeg", "unpack")


@pytest.mark.parametrize("extra, found", [("train", "in train/"), ("val", "not in train/")])
def test_classes_differ(own_tree, extra, found):
    shutil.copytree(own_tree / extra / "n01", own_tree / extra / "n015")
    splits = load(own_tree)
    len(splits.test)
    with pytest.raises(InputError) as caught:
        len(splits.train)
    says(caught, own_tree, f"of 1 that only one of them has, the first is n015, {found};", "the same classes")


@pytest.mark.parametrize("keep, reason", [(0, "cannot identify"), (0.01, ""), (0.7, "truncated")])
def test_unreadable_image(own_tree, keep, reason):
    path = sorted((own_tree / "val" / "n04").iterdir())[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(InputError) as caught:
        load(own_tree).test[-1]
    says(caught, path, reason, "cannot read", "unpack it again")


def test_a_worker_says_which_image_it_cannot_read(own_tree):
    # The very last one: torch waits long for workers that still hold batches when another one fails.
    path = sorted((own_tree / "val" / "n04").iterdir())[-1]
    path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(make(own_tree, 1).test_dataloader())
    says(caught, path, "cannot read", "unpack it again")


def test_vanished_image(own_tree):
    splits = load(own_tree)
    path = file_of(splits.test, 0)
    path.unlink()
    with pytest.raises(InputError, match="No such file"):
        splits.test[0]


@pytest.mark.parametrize("validation", [0, -1, True, 2.5, "8"])
def test_validation_is_no_count(tree, validation):
    with pytest.raises(InputError) as caught:
        load(tree, validation=validation)
    says(caught, f"validation {validation!r} must be a whole number of at least 1")


@pytest.mark.parametrize("validation", [24, 50000])
def test_validation_takes_all(tree, validation):
    splits = load(tree, validation=validation)
    assert len(splits.test) == 12
    for part in (splits.train, splits.val, splits.calibration):
        with pytest.raises(InputError) as caught:
            len(part)
        says(caught, f"validation {validation} must be from 1 to 23", tree / "train", "24 images", "fewer")
