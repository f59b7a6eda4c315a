"""Own images in folders: which splits they make, how they are prepared, kept and augmented."""

import shutil

import numpy as np
import pytest
import torch
from helpers.own_images import CLASSES, write_classes
from PIL import Image

from norton.common.errors import InputError, NortonWarning
from norton.data import load_data
from norton.data.datamodule import ClassificationData, workers_for
from norton.data.normalising import NAMED
from norton.data.preparing import Preparation

pytestmark = pytest.mark.quick

COUNTS = {"blue": 30, "green": 20, "red": 10}


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("images"), COUNTS)


def load(root, **options):
    return load_data("folder", root=root, **{"size": 16, **options})


def files(part):
    """The files of a part of the splits."""
    source = part.part.store.source
    return [str(source.folders.file(source._samples[0][number])) for number in part.part.numbers]


def test_images_that_were_evaluated_first_can_be_trained_on(classes):
    splits = load(classes)
    with torch.inference_mode():  # as Lightning does
        splits.test[0]
    assert splits.train[0][0].shape == (3, 16, 16)


def whole(part):
    return torch.stack([image for image, _ in part])


def test_splits_are_drawn_from_class_folders(classes):
    splits = load(classes)
    assert splits.classes == CLASSES and splits.input_size == (3, 16, 16)
    parts = [splits.train, splits.val, splits.test]
    assert [part.labels.bincount().tolist() for part in parts] == [[21, 14, 7], [3, 2, 1], [6, 4, 2]]
    names = [name for part in parts for name in files(part)]
    assert len(names) == len(set(names)) == 60
    assert files(splits.train) == files(splits.calibration)
    assert files(load(classes, seed=1).test) != files(splits.test) == files(load(classes).test)
    for part in parts:
        for name, label in zip(files(part), part.labels, strict=True):
            assert f"/{CLASSES[label]}/" in name


def test_classes_may_be_called_as_splits_are(tmp_path):
    for name, colour in (("train", "blue"), ("bus", "green"), ("test", "red")):
        write_classes(tmp_path, {colour: 10})
        (tmp_path / colour).rename(tmp_path / name)
    assert load(tmp_path).classes == ("bus", "test", "train")


def test_a_class_too_rare_for_a_drawn_split_is_said(tmp_path):
    root = write_classes(tmp_path, {"blue": 30, "green": 30, "red": 2})
    with pytest.warns(NortonWarning, match=r"the 6 val images, drawn from .*, have none of red; raise data.validation"):
        load(root)


def test_sizes_of_drawn_splits(classes):
    splits = load(classes, validation=0.25, test=6)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [39, 15, 6]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "testing"), ("train", "validation")])
def test_folders_of_splits(tmp_path, names):
    for seed, name in enumerate(names):
        write_classes(tmp_path / name, {"blue": 4, "red": 6}, seed)
    (tmp_path / "notes").mkdir()
    splits = load(tmp_path)
    assert splits.classes == ("blue", "red")
    assert {name.split("/")[-3] for name in files(splits.train)} == {names[0]}
    assert {name.split("/")[-3] for name in files(splits.val)} == {names[1]}
    assert {name.split("/")[-3] for name in files(splits.test)} == {names[-1] if len(names) == 3 else names[0]}
    assert len(splits.train) == (10 if len(names) == 3 else 8)


def test_who_evaluates_needs_no_training_images(tmp_path):
    write_classes(tmp_path / "val", {"blue": 2, "red": 2})
    write_classes(tmp_path / "test", {"blue": 2, "red": 2})
    splits = load(tmp_path)
    assert len(splits.test) == len(splits.val) == 4
    shutil.rmtree(tmp_path / "val")
    assert len(load(tmp_path).test) == 4
    with pytest.raises(InputError, match="train: No such file"):
        len(splits.train)


def test_prepared_as_torchvision_would(classes):
    """A slow oracle: each image resized and cut by Pillow alone."""
    splits = load(classes, size=16, mean=[0.5, 0.4, 0.3], std=0.25)
    for (image, _), name in zip(splits.val, files(splits.val), strict=True):
        picture = Image.open(name).resize((19, 16), Image.Resampling.BILINEAR).crop((1, 0, 17, 16))
        expected = (np.asarray(picture) / 255 - [0.5, 0.4, 0.3]) / 0.25
        np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(48, 96), (96, 48), (224, 70), (65, 65)])
@pytest.mark.parametrize("picture", [(30, 30), (7, 200), (400, 300)])
def test_any_picture_fills_any_size(size, picture):
    prepare = Preparation(*size)
    images = prepare(Image.fromarray(np.full((*picture, 3), 255, np.uint8)))
    assert images.shape == (3, *prepare.box) and images.min() == 255
    assert prepare.middle(images).shape == (3, *size)
    assert prepare.box == (size if min(size) <= 64 else (size[0] * 8 // 7, size[1] * 8 // 7))


def test_grey_and_its_normalisation(classes):
    splits = load(classes, channels=1, mean="auto")
    assert splits.input_size == (1, 16, 16)
    images = whole(splits.calibration)
    assert abs(images.mean()) < 1e-5 and abs(images.std(correction=0) - 1) < 1e-5
    assert load(classes, channels=1).normalisation == ((0.5,), (0.5,))
    assert load(classes).normalisation == NAMED["imagenet"]


def test_in_memory_or_not_images_are_the_same(classes):
    for augment in (["crop", "flip"], ["crop", "randaugment"]):
        kept, read = load(classes, augment=augment), load(classes, augment=augment, memory=0)
        assert kept.train.in_memory and not read.train.in_memory
        for epoch in (0, 3):
            kept.train.set_epoch(epoch), read.train.set_epoch(epoch)
            assert torch.equal(whole(kept.train), whole(read.train))


def test_pictures_in_memory_are_decoded_once(classes, monkeypatch):
    splits = load(classes)
    source = splits.train.part.store.source
    read, original = [], source.picture
    monkeypatch.setattr(source, "picture", lambda number: read.append(number) or original(number))
    assert len(splits.calibration.__getitems__(range(5))) == 5
    assert len(read) == 5  # and no others
    whole(splits.train), whole(splits.calibration), whole(splits.val), whole(splits.test)
    assert sorted(read) == list(range(60))


def test_workers_are_as_many_as_help(classes, monkeypatch):
    monkeypatch.setattr("norton.data.datamodule.cores", lambda: 6)
    assert workers_for(load(classes).train, 4) == 0
    assert workers_for(load(classes, memory=0).train, 4) == 6
    assert workers_for(load(classes, memory=0).train, 21) == 2
    monkeypatch.setattr("norton.data.datamodule.cores", lambda: 1)
    assert workers_for(load(classes, memory=0).train, 4) == 0


def test_workers_change_nothing(classes):
    def batches(workers):
        data = ClassificationData("folder", 8, root=classes, num_workers=workers, size=16, memory=0, augment="rotate")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(2)
        return torch.cat([images for images, _ in loader])

    assert torch.equal(batches(0), batches(2))


def test_broken_images(classes, tmp_path):
    root = shutil.copytree(classes, tmp_path / "own")
    (root / "red" / "003.png").write_bytes((root / "red" / "003.png").read_bytes()[:200])
    (root / "blue" / "001.png").write_text("no image")
    splits = load(root, validation=1, test=1)
    with pytest.raises(InputError, match=r"00[13]\.png.*data\.broken=skip"):
        whole(splits.train)
    with pytest.warns(NortonWarning, match=r"2 images cannot be read: left out are .*blue/001\.png, .*red/003\.png"):
        splits = load(root, broken="skip")
    assert sum(map(len, (splits.train, splits.val, splits.test))) == 58
    assert whole(splits.train).isfinite().all()
    for path in (root / "red").iterdir():
        path.write_text("no image")
    with (
        pytest.warns(NortonWarning, match="11 images .* and 8 more"),
        pytest.raises(InputError, match=r"no image of .*/red can be read"),
    ):
        load(root, broken="skip")


def make_odd(kind, root):
    if kind == "one class":
        return write_classes(root, {"red": 3})
    if kind == "loose":
        write_classes(root, {"red": 1})
        return (root / "red").replace(root / "train") and root
    if kind == "empty":
        write_classes(root, {"red": 3, "blue": 0})
    if kind == "differ":
        write_classes(root / "train", {"red": 3, "blue": 2, "green": 2})
        write_classes(root / "val", {"red": 3, "green": 2})
    if kind == "twice":
        write_classes(root / "val", {"red": 3})
        write_classes(root / "Valid", {"red": 3})
    if kind == "few":
        write_classes(root, {"red": 1, "blue": 1})
    return root


def test_folders_beside_those_of_splits_are_named(tmp_path):
    for split in ("train", "eval"):
        write_classes(tmp_path / split, COUNTS)
    with pytest.warns(NortonWarning, match="only train count; left out are eval"):
        splits = load(tmp_path)
    assert sum(map(len, (splits.train, splits.val, splits.test))) == sum(COUNTS.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("one class", "only one class, red"),
        ("loose", r"found 1 images directly inside, such as 000\.png.*one folder per class"),
        ("empty", r"looked for images in .*/blue: found none"),
        ("differ", "the first is blue, in train/; give both folders the same classes"),
        ("twice", "Valid and val in .* mean the same"),
        ("few", "of 2 training images none is left to train on beside 1 val and 1 test images"),
        ("nowhere", "No such file.*train/, val/ and test/"),
    ],
)
def test_bad_folders(tmp_path, kind, message):
    with pytest.raises(InputError, match=message) as caught:
        len(load(make_odd(kind, tmp_path / "own")).train)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": None}, "nothing says the size"),
        ({"size": "big"}, r"size 'big' is no size of an image; give pixels, e\.g\. 32, or \[height,width\]"),
        ({"size": [32]}, "is no size"),
        ({"size": True}, "is no size"),
        ({"channels": 4}, r"channels 4 must be 3 \(colour\) or 1"),
        ({"mean": [0.5, 0.5]}, r"mean \[0\.5, 0\.5\] is not 3 numbers"),
        ({"mean": "imagenet", "channels": 1}, "is not 1 numbers"),
        ({"std": 0}, "must be above 0"),
        ({"mean": [123.7, 116.3, 103.5], "std": 58}, "is of pixels up to 255; divide it, and std, by 255"),
        ({"augment": 3}, "unknown augment '3'"),
        ({"broken": "hide"}, "broken is 'hide'; choose one of refuse, skip"),
        ({"augment": "flop"}, "unknown augment 'flop'; choose among none, crop"),
        ({"augment": "no.such.thing"}, r"augment no\.such\.thing: cannot import no\.such"),
        ({"augment": "torch.nothing"}, "torch has nothing callable of the name 'nothing'"),
        ({"augment": "torchvision.transforms.v2.Resize"}, "cannot be made without arguments"),
        ({"validation": 0}, r"validation .* is 0; it must be a whole number of at least 1"),
        ({"validation": 1.5}, "validation .* must be a whole number"),
        ({"test": 59}, "none is left to train on"),
        ({"memory": "all"}, "memory 'all' is no number of bytes"),
        ({"colour": 3}, "has no option colour; it has broken, size, channels"),
    ],
)
def test_bad_options(classes, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load(classes, **options)
    assert "\n" not in str(caught.value)


def test_options_that_can_do_nothing(tmp_path):
    for name in ("train", "val"):
        write_classes(tmp_path / name, {"blue": 4, "red": 6})
    with pytest.raises(InputError, match="has val images of its own, so validation can do nothing"):
        load(tmp_path, validation=3)


def test_sets_are_called_in_many_ways(tmp_path):
    for name in ("training_set", "test_set"):
        write_classes(tmp_path / "kaggle" / name, {"blue": 5, "red": 5})
    splits = load_data("folder", root=tmp_path / "kaggle", size=8)
    assert splits.classes == ("blue", "red") and not splits.test_is_drawn


def test_folders_that_look_like_splits_are_said(tmp_path):
    for name in ("first", "second"):
        write_classes(tmp_path / name, {"blue": 5, "red": 5})
    with pytest.warns(NortonWarning, match=r"first, second in .* count as classes, and all have the folders blue, red"):
        assert load_data("folder", root=tmp_path, size=8).classes == ("first", "second")
