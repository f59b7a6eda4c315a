"""The scenes are what their annotations say, and COCO scores them as worked out by hand."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import norton
from detection.coco import CocoImages, encode, open_annotations
from detection.scenes import KEYPOINTS, extreme_points, scenes, write_scenes
from detection.scoring import results_for, results_of, score

pytestmark = pytest.mark.quick

COUNTS = {"train": 12, "val": 3, "test": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", counts=COUNTS)


def opened(root, split="train", kind="boxes"):
    name = "keypoints" if kind == "keypoints" else "instances"
    return CocoImages(root / split, open_annotations(root / "annotations" / f"{name}_{split}.json"), kind)


def test_what_is_on_disk(root):
    for split, count in COUNTS.items():
        assert len(list((root / split).glob("*.png"))) == count
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    assert [category["name"] for category in content["categories"]] == list("0123456789")
    keypoints = json.loads((root / "annotations" / "keypoints_train.json").read_text())
    assert keypoints["categories"][0]["keypoints"] == list(KEYPOINTS)
    assert len(keypoints["annotations"]) == len(content["annotations"]) > 12


def test_images_and_masks_are_the_scenes(root):
    data = opened(root, kind="masks")
    for (image, target), scene in zip(data, scenes("train", 12), strict=True):
        assert torch.equal((image * 255).round().to(torch.uint8), scene.image)
        assert torch.equal(target["masks"].bool(), scene.masks)
        assert torch.equal(target["labels"], scene.labels + 1)


def test_boxes_and_keypoints_from_the_masks(root):
    masks, points = opened(root, kind="masks"), opened(root, kind="keypoints")
    for (_, a), (_, b) in zip(masks, points, strict=True):
        for mask, box, four in zip(a["masks"], a["boxes"], b["keypoints"], strict=True):
            rows, columns = mask.nonzero().unbind(1)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [float(edge) for edge in tight]
            top, bottom, left, right = four[:, :2].tolist()
            assert (top[1], bottom[1]) == (rows.min() + 0.5, rows.max() + 0.5)
            assert (left[0], right[0]) == (columns.min() + 0.5, columns.max() + 0.5)
            for x, y in (top, bottom, left, right):
                assert box[0] <= x <= box[2]
                assert box[1] <= y <= box[3]


def test_extreme_points_by_hand():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1, 3:6] = mask[4, 2] = mask[2:5, 4] = True
    assert extreme_points(mask) == [(4.5, 1.5), (3.5, 4.5), (2.5, 4.5), (5.5, 1.5)]


def test_the_same_for_the_same_seed_and_none_shared_between_splits():
    first, again, other = (next(iter(scenes("val", 1, seed=seed))) for seed in (0, 0, 1))
    assert torch.equal(first.image, again.image)
    assert not torch.equal(first.image, other.image)


def test_written_once(root, tmp_path):
    before = (root / "train" / "000001.png").stat().st_mtime_ns
    assert write_scenes(root, counts=COUNTS) == root
    assert (root / "train" / "000001.png").stat().st_mtime_ns == before
    with pytest.raises(norton.InputError, match="scenes of other settings"):
        write_scenes(root, counts=COUNTS, seed=1)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(norton.InputError, match="something else than scenes"):
        write_scenes(tmp_path, counts=COUNTS)


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_the_truth_scores_one(root, kind):
    data = opened(root, kind=kind)
    results = []
    for _, target in data:
        found = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["boxes"]))}
        if kind == "masks":
            found["masks"] = target["masks"][:, None]
        if kind == "keypoints":
            found["keypoints"] = target["keypoints"]
        results += results_of(target["image_id"], found)
    scores = score(data.coco, results, kind, sigmas=[0.05] * 4 if kind == "keypoints" else None)
    assert set(scores) == {"boxes": {"bbox"}, "masks": {"bbox", "segm"}, "keypoints": {"bbox", "keypoints"}}[kind]
    for numbers in scores.values():
        assert numbers["AP"] == pytest.approx(1)


def tiny(tmp_path, annotations, categories=1):
    images = [{"id": 7, "file_name": "a.png", "width": 100, "height": 100}]
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    for number, one in enumerate(annotations, 1):
        one.update({"id": number, "image_id": one.get("image_id", 7), "category_id": one.get("category_id", 1)})
        one.setdefault("iscrowd", 0)
        one["area"] = one["bbox"][2] * one["bbox"][3]
    kinds = [{"id": number + 1, "name": str(number)} for number in range(categories)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": images, "categories": kinds, "annotations": annotations}))
    return path


def test_scores_by_hand(tmp_path):
    """Two objects; one box with IoU 0.8 to the first, one with IoU 0: precision 1 up to recall 1/2."""
    coco = open_annotations(tiny(tmp_path, [{"bbox": [0, 0, 50, 50]}, {"bbox": [60, 60, 40, 40]}]))
    found = {
        "boxes": torch.tensor([[0.0, 0, 50, 40], [0, 90, 10, 100]]),  # 50*40 / 50*50 = 0.8
        "labels": torch.tensor([1, 1]),
        "scores": torch.tensor([0.9, 0.8]),
    }
    numbers = score(coco, results_of(7, found))["bbox"]
    at_one_threshold = 51 / 101  # recalls 0, 0.01, ..., 0.50 have precision 1
    assert numbers["AP50"] == pytest.approx(at_one_threshold)
    assert numbers["AP75"] == pytest.approx(at_one_threshold)
    assert numbers["AP"] == pytest.approx(0.7 * at_one_threshold)  # thresholds 0.50 to 0.80 of ten
    assert numbers["AR100"] == pytest.approx(0.7 / 2)
    assert numbers["APs"] is None


def test_keypoints_score_by_hand(tmp_path):
    """All keypoints 4 pixels off, area 1600, sigma 0.05: OKS = exp(-4² / (2 · 1600 · 0.1²)) = exp(-1/2) = 0.607."""
    one = {"bbox": [0, 0, 40, 40], "keypoints": [10, 10, 2, 30, 40, 2], "num_keypoints": 2}
    coco = open_annotations(tiny(tmp_path, [one]))
    found = {"boxes": torch.tensor([[0.0, 0, 40, 40]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    found["keypoints"] = torch.tensor([[[14.0, 10.0, 1], [30.0, 44.0, 1]]])
    results = results_of(7, found)
    numbers = score(coco, results, "keypoints", sigmas=[0.05, 0.05])["keypoints"]
    assert numbers["AP"] == pytest.approx(0.3)  # thresholds 0.50, 0.55, 0.60 of ten
    assert (numbers["AP50"], numbers["AP75"]) == (pytest.approx(1), 0)
    wider = score(coco, results, "keypoints", sigmas=[0.1, 0.1])["keypoints"]  # exp(-1/8) = 0.882
    assert wider["AP"] == pytest.approx(0.8)


def test_masks_score_by_hand_with_their_own_area(tmp_path):
    """A box of 1600 pixels, large for COCO's smallest class; the mask in it has 400, which is small, and IoU 0.5."""
    whole = np.zeros((100, 100), dtype=np.uint8)
    whole[:20, :20] = 1
    truth = {"bbox": [0, 0, 40, 40], "segmentation": encode(torch.tensor(whole))}
    coco = open_annotations(tiny(tmp_path, [truth]))
    coco.anns[1]["area"] = 400.0
    found = {"boxes": torch.tensor([[0.0, 0, 40, 40]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    found["masks"] = torch.tensor(whole).float()[None, None].clone()
    found["masks"][..., 10:, :] = 0
    scores = score(coco, results_of(7, found), "masks")
    assert scores["bbox"]["AP"] == pytest.approx(1)
    assert scores["segm"]["AP"] == scores["segm"]["APs"] == pytest.approx(0.1)  # the threshold 0.50 alone
    assert scores["segm"]["APm"] is None


def test_result_files_hold_one_type_each(tmp_path):
    found = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    found["keypoints"] = torch.tensor([[[1.0, 1, 1]]])
    (one,) = results_for(results_of(7, found), "keypoints")
    assert one == {"image_id": 7, "category_id": 1, "keypoints": [1, 1, 1], "score": pytest.approx(0.9)}
    (one,) = results_for(results_of(7, found), "bbox")
    assert set(one) == {"image_id", "category_id", "bbox", "score"}


def test_nothing_found_scores_zero(root):
    assert score(opened(root).coco, [])["bbox"]["AP"] == 0


def test_odd_boxes_are_counted(tmp_path):
    odd = [{"bbox": [0, 0, 50, 50]}, {"bbox": [90, 90, 30, 30]}, {"bbox": [5, 5, 0, 9]}, {"bbox": [200, 5, 9, 9]}]
    crowd = [{"bbox": [0, 0, 90, 90], "iscrowd": 1}]
    data = CocoImages(tmp_path, open_annotations(tiny(tmp_path, odd + crowd)))
    (_, target) = data[0]
    assert target["boxes"].tolist() == [[0, 0, 50, 50], [90, 90, 100, 100]]
    assert (data.skipped, data.cut) == (2, 1)
    assert data.with_objects() == [0]


@pytest.mark.parametrize("kind", ["boxes", "masks", "keypoints"])
def test_images_without_objects(kind, root, tmp_path):
    content = json.loads((root / "annotations" / "keypoints_train.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps({**content, "annotations": []}))
    data = CocoImages(root / "train", open_annotations(tmp_path / "a.json"), kind)
    target = data[0][1]
    assert target["boxes"].shape == (0, 4)
    assert kind != "masks" or target["masks"].shape == (0, 128, 128)
    assert kind != "keypoints" or target["keypoints"].shape == (0, 4, 3)
    assert data.with_objects() == []


def test_a_crowd_alone_is_no_object(tmp_path):
    crowd = [{"bbox": [0, 0, 90, 90], "iscrowd": 1}]
    empty = CocoImages(tmp_path, open_annotations(tiny(tmp_path, crowd)))
    assert empty[0][1]["boxes"].shape == (0, 4)
    assert empty.with_objects() == []


@pytest.mark.parametrize("annotations, message", [
    ([{"bbox": [0, 0, 5, 5], "image_id": 8}], "annotation 1 refers to image_id 8"),
    ([{"bbox": [0, 0, 5, 5], "category_id": 3}], "refers to category_id 3"),
])  # fmt: skip
def test_annotations_of_what_is_not_there(annotations, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        open_annotations(tiny(tmp_path, annotations))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(norton.InputError, match="no annotations at"):
        open_annotations(tmp_path / "nix.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(norton.InputError, match="not JSON"):
        open_annotations(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(norton.InputError, match="no COCO annotations"):
        open_annotations(tmp_path / "b.json")
    coco = open_annotations(tiny(tmp_path, []))
    with pytest.raises(norton.InputError, match="kind is 'nix'"):
        CocoImages(tmp_path, coco, "nix")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(norton.InputError, match=r"cannot read the image .*a\.png"):
        CocoImages(tmp_path, coco)[0]
    (tmp_path / "a.png").unlink()
    with pytest.raises(norton.InputError, match=r"1 annotated images are missing, first a\.png"):
        CocoImages(tmp_path, coco)
