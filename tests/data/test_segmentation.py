"""Images with masks: which files belong together, what becomes of them, and what is refused."""

import numpy as np
import pytest
import torch
from helpers.segmentation import IGNORED, write_folder, write_pairs
from PIL import Image
from torchvision import datasets

from norton.common.errors import InputError, NortonWarning
from norton.data import load_data
from norton.data.datamodule import ClassificationData
from norton.data.pairs import PairAugmentation, PairPreparation

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("scenes"))


def load(root, **options):
    return load_data("segmentation", root=root, **{"size": 16, **options})


def files(part):
    """The images of a part of the splits."""
    listed = part.part.store.source.files
    return [str(listed.images[number]) for number in part.part.numbers]


def test_splits_are_drawn_and_classes_counted(folder):
    splits = load(folder)
    assert (splits.task, splits.ignore, splits.classes) == ("segmentation", IGNORED, ("0", "1", "2"))
    assert splits.input_size == (3, 16, 16)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [14, 2, 4]
    assert len({name for part in parts for name in files(part)}) == 20
    assert files(splits.calibration) == files(splits.train) != files(load(folder, seed=1).train)
    assert files(load(folder).test) == files(splits.test)
    image, mask = splits.test[0]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32
    assert mask.shape == (16, 16) and mask.dtype == torch.int64 and set(mask.unique().tolist()) == {0, 1, 2, IGNORED}


@pytest.mark.parametrize("inside", [True, False])
def test_folders_of_splits(tmp_path, inside):
    for seed, (split, count) in enumerate((("train", 4), ("val", 2), ("testing", 3))):
        places = [tmp_path / name / split if inside else tmp_path / split / name for name in ("images", "masks")]
        write_pairs(*places, count, seed)
    splits = load(tmp_path)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 2, 3]
    assert all("testing" in name for name in files(splits.test))


def test_who_evaluates_needs_no_training_images(tmp_path):
    write_pairs(tmp_path / "test" / "images", tmp_path / "test" / "masks", 3)
    splits = load(tmp_path, classes=["sky", "road", "car"])
    assert len(splits.test) == 3 and splits.classes == ("sky", "road", "car")
    with pytest.raises(InputError, match="no training images in"):
        len(splits.train)


def test_masks_keep_their_classes(tmp_path):
    """Of a stripe per class, enlarged and made smaller, no value is between; palettes count as their numbers."""
    values = np.repeat(np.array([0, 2, IGNORED, 7], dtype=np.uint8), 4)[None].repeat(12, 0)
    for place in ("images", "masks"):
        (tmp_path / place).mkdir()
    for number in range(4):
        Image.fromarray(values).convert("RGB").save(tmp_path / "images" / f"{number}.png")
    palette = Image.fromarray(values, mode="P")
    palette.putpalette([*range(255, -1, -1)] * 3)
    palette.save(tmp_path / "masks" / "0.png")
    Image.fromarray(values).save(tmp_path / "masks" / "1.bmp")
    Image.fromarray(values.astype(np.uint16)).save(tmp_path / "masks" / "2.png")
    Image.fromarray(values).save(tmp_path / "masks" / "3.tif")
    for side in (8, 16, 64):
        splits = load(tmp_path, size=side, augment="none", mean=0.0, std=1.0)
        assert splits.num_classes == 8
        for part in (splits.train, splits.val, splits.test):
            for image, mask in part:
                expected = torch.tensor([0, 2, IGNORED, 7]).repeat_interleave(side // 4).expand(side, side)
                assert torch.equal(mask, expected)
                assert (255 * image[0, 0, [0, -1]]).round().tolist() == [0, 7]


@pytest.mark.parametrize("names", ["flip", "crop", ("crop", "flip"), "resizedcrop", "none"])
def test_image_and_mask_move_together(names):
    """A picture whose colours are its mask is still that afterwards."""
    values = torch.randint(0, 3, (4, 4), generator=torch.Generator().manual_seed(0)).repeat_interleave(8, 0)
    mask = values.repeat_interleave(8, 1).byte()
    image = 100 * mask.expand(3, 32, 32)
    augment = PairAugmentation("x", names, PairPreparation(32, 32))
    before, moved = torch.get_rng_state(), []
    for number in range(8):
        there, where = augment(image, mask, 0, 0, number)
        assert there.shape == image.shape and where.shape == mask.shape and where.dtype == torch.uint8
        same = (there[0] == 100 * where).float().mean()
        assert same == 1 if names != "resizedcrop" else same > 0.6  # bilinear beside nearest
        moved.append(not torch.equal(where, mask))
    assert any(moved) == (names != "none") and torch.equal(torch.get_rng_state(), before)
    again = augment(image, mask, 0, 0, 7)
    assert torch.equal(again[0], there) and torch.equal(again[1], where)


def test_only_training_images_are_augmented_by_epoch(folder):
    splits = load(folder)
    first = splits.train[0]
    splits.train.set_epoch(1)
    others = [splits.train[number] for number in range(4)]
    splits.train.set_epoch(0)
    assert torch.equal(first[1], splits.train[0][1])
    assert any(not torch.equal(mask, splits.train[number][1]) for number, (_, mask) in enumerate(others))
    assert torch.equal(load(folder, augment="none").train[3][1], splits.calibration[3][1])


def mirrored(image, mask):
    return image.flip(-1), mask.flip(-1)


def test_a_function_of_ones_own(folder):
    splits = load(folder, augment=f"{__name__}.mirrored")
    assert torch.equal(splits.train[0][1].flip(-1), splits.calibration[0][1])
    assert torch.equal(splits.train[0][0].flip(-1), splits.calibration[0][0])


def test_loaders(folder):
    data = ClassificationData("segmentation/folder", 4, root=folder, size=16)
    images, masks = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 16, 16) and masks.shape == (4, 16, 16)
    assert (data.task, data.ignore, data.num_classes) == ("segmentation", IGNORED, 3)
    assert data.calibration_images(5).shape == (5, 3, 16, 16)
    assert torch.equal(data.images("test", 2)[1], data.splits.test[1][0])


def test_statistics_leave_masks_out(folder):
    (mean, std), images = load(folder, mean="auto").normalisation, load(folder, mean=0.0, std=1.0).calibration
    pixels = torch.stack([image for image, _ in images])
    assert len(mean) == len(std) == 3
    torch.testing.assert_close(torch.tensor(mean), pixels.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def test_voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write_pairs(root / "JPEGImages", root / "SegmentationClass", 8)
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, numbers in (("train", range(5)), ("val", range(5, 8))):
        lines = "".join(f"{number:03}\n" for number in numbers)
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(lines)
    splits = load_data("segmentation/voc", root=tmp_path, size=16)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [4, 1, 3]
    assert splits.num_classes == 21 and splits.classes[15] == "person"
    assert splits.test[0][1].max() == IGNORED
    with pytest.raises(InputError, match=r"looked in .* fetch it with data\.download=true"):
        load_data("segmentation/voc", root=tmp_path / "nowhere", size=16)
    with pytest.raises(InputError, match="leave classes out"):
        load_data("segmentation/voc", root=tmp_path, size=16, classes=3)


def test_cityscapes_numbers_become_those_of_scored_classes(tmp_path):
    ids = np.array(
        [[7, 8, 33, 0], [26, 24, 5, 11]], dtype=np.uint8
    )  # road, sidewalk, bicycle, -; car, person, -, building
    for split in ("train", "val"):
        for kind, name, pixels in (("leftImg8bit", "leftImg8bit", ids), ("gtFine", "gtFine_labelIds", ids)):
            (tmp_path / kind / split / "town").mkdir(parents=True)
            for number in range(4):
                Image.fromarray(pixels).save(tmp_path / kind / split / "town" / f"town_{number}_{name}.png")
    splits = load_data("segmentation/cityscapes", root=tmp_path, size=[2, 4])
    assert splits.num_classes == 19 and splits.classes[13] == "car"
    assert splits.test[0][1].tolist() == [[0, 1, 18, IGNORED], [13, 11, IGNORED, 2]]
    assert len(splits.test) == 4 and datasets.Cityscapes.classes[7].name == splits.classes[0]


def spoil(folder, what):
    image, mask = folder / "images" / "004.jpg", folder / "masks" / "004.png"
    if what == "missing":
        mask.unlink()
    elif what == "size":
        Image.open(mask).crop((0, 0, 20, 20)).save(mask)
    elif what == "rgb":
        Image.open(mask).convert("RGB").save(mask)
    elif what == "value":
        Image.open(mask).point(lambda value: 9 if value == 2 else value).save(mask)
    elif what == "broken":
        mask.write_bytes(b"no image")
    elif what == "empty":
        for path in (folder / "images").iterdir():
            path.unlink()
    elif what == "one":
        for path in (folder / "masks").iterdir():
            Image.open(path).point(lambda value: 0).save(path)
    elif what == "jpeg":
        Image.open(mask).save(mask, "JPEG")
    elif what == "twice":
        Image.open(image).save(image.with_suffix(".png"))
    elif what == "masks":
        (folder / "masks").rename(folder / "labels")
    elif what == "images":
        (folder / "images").rename(folder / "pictures")


BAD = [
    ("missing", {}, r"no mask for .*images/004.jpg: looked for a file of the same name in .*masks; add it"),
    ("size", {"classes": 3}, r"004.png has 20×20 pixels, its image 004.jpg 24×20"),
    ("rgb", {"classes": 3}, r"004.png is of RGB, not of class numbers; a mask is a grey or palette image"),
    ("rgb", {}, "004.png is of RGB"),
    ("value", {"classes": 3}, r"004.png has the value 9, and the 3 classes are 0 to 2, where 255 is ignored"),
    ("", {"classes": 3, "ignore": None}, r"has the value 255, and the 3 classes are 0 to 2, where no value is ignored"),
    ("broken", {}, "cannot read .*004.png as a mask"),
    ("empty", {}, "no image in .*images; names end in"),
    ("one", {}, r"its masks have only the class 0, and 255, which is ignored"),
    ("jpeg", {}, "004.png is a JPEG, which does not keep numbers as they are; save masks as PNG"),
    ("", {"augment": 3}, "'3' moves no masks"),
    ("twice", {}, "004.jpg and .*004.png have the same name"),
    ("masks", {}, r"found no masks/; it must hold images/ and masks/"),
    ("images", {}, r"found no images/; it must hold images/ and masks/"),
    ("", {"classes": 1}, "classes 1: there must be 2 to 256"),
    ("", {"classes": ["a", "a"]}, "of different names"),
    ("", {"classes": "three"}, "give how many, or a list of their names"),
    ("", {"ignore": 300}, "ignore 300 is no value of a pixel"),
    ("", {"augment": "randaugment"}, "'randaugment' moves no masks; choose among none, crop, resizedcrop, flip"),
    ("", {"dataset": "coco"}, "'coco' is unknown; choose one of folder, voc, cityscapes"),
    ("", {"download": True}, "are for voc and cityscapes"),
    ("", {"size": None}, "nothing says the size of images"),
]  # fmt: skip


@pytest.mark.parametrize("what, options, message", BAD)
def test_bad_input(what, options, message, tmp_path):
    write_folder(tmp_path, 10)
    spoil(tmp_path, what)
    with pytest.raises(InputError, match=message) as error:
        splits = load(tmp_path, **options)
        for part in (splits.train, splits.val, splits.test):
            list(part)
    assert "\n" not in str(error.value)


def lost(image, mask):
    return image


def test_a_function_that_loses_the_mask(folder):
    with pytest.raises(InputError, match="should take an image and its mask, and give both"):
        load(folder, augment=f"{__name__}.lost").train[0]


def test_masks_without_images_are_named(tmp_path):
    write_folder(tmp_path, 10)
    (tmp_path / "images" / "003.jpg").unlink()
    with pytest.warns(NortonWarning, match="1 masks without an image are left out, such as .*003.png"):
        assert len(load(tmp_path).train) == 6


def change(masks, values):
    for path in masks.iterdir():
        Image.open(path).point(values).save(path)


@pytest.mark.parametrize("options", [{}, {"classes": 2}, {"classes": ["sky", "road"]}, {"ignore": None}])
def test_masks_of_0_and_255(tmp_path, options):
    write_folder(tmp_path, 10)
    plain = load(tmp_path, classes=3).test[0][1]
    change(tmp_path / "masks", lambda value: 255 * (value > 0))
    with pytest.warns(NortonWarning, match=r"are of 0 and 255 alone: 255 is the class 1, and no value is ignored"):
        splits = load(tmp_path, **options)
    assert splits.num_classes == 2 and splits.ignore is None
    assert torch.equal(splits.test[0][1], (plain > 0).long())


def test_a_class_that_occurs_late_is_no_reason_to_take_255_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("norton.data.datasets.segmentation.LOOKED_AT", 3)
    write_folder(tmp_path, 10)
    plain = load(tmp_path, classes=3)
    masks = sorted((tmp_path / "masks").iterdir())
    for number, path in enumerate(masks):  # 255 is to be ignored; only the last masks have a class 1
        Image.open(path).point(lambda value, late=number > 6: value if value in (0, 255) else int(late)).save(path)
    splits = load(tmp_path, classes=2)
    assert splits.num_classes == 2 and splits.ignore == IGNORED == plain.ignore
    assert {1, IGNORED} <= {
        int(v) for part in (splits.train, splits.val, splits.test) for _, m in part for v in m.unique()
    }


def test_another_value_beside_0_and_255_is_refused(tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_pairs(tmp_path / split / "images", tmp_path / split / "masks", 4, seed)
        change(tmp_path / split / "masks", lambda value: 255 * (value > 0))
    change(tmp_path / "test" / "masks", lambda value: 128 if value else 0)
    with pytest.warns(NortonWarning, match="0 and 255 alone"):
        splits = load(tmp_path)
    with pytest.raises(InputError, match=r"00\d.png has the value 128, and the 2 classes are 0, 255, where no"):
        splits.test[0]


def test_classes_that_never_occur_are_said(tmp_path):
    write_folder(tmp_path, 10)
    change(tmp_path / "masks", lambda value: 9 if value == 2 else value)
    with pytest.warns(NortonWarning, match=r"10 classes, .* values up to 9, but only 3 occur: 0, 1, 9; data.classes"):
        assert load(tmp_path).num_classes == 10
