"""Folders and images that are missing, empty or damaged, each told in one line."""

import shutil

import pytest
from helpers.imagenet import CLASSES, file_of, load, make

from norton.common.errors import InputError

pytestmark = pytest.mark.quick


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
    says(caught, f"validation is {validation!r}; it must be a whole number of at least 1")


@pytest.mark.parametrize("validation", [24, 50000])
def test_validation_takes_all(tree, validation):
    splits = load(tree, validation=validation)
    assert len(splits.test) == 12
    for part in (splits.train, splits.val, splits.calibration):
        with pytest.raises(InputError) as caught:
            len(part)
        says(caught, f"validation {validation} must be from 1 to 23", tree / "train", "24 images", "fewer")
