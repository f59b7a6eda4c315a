"""Loaders, the published schedule, and a tiny training of each detector."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import succeeds
from PIL import Image

import norton
from detection import build_detector, training
from detection.data import MIRRORED_PERSON, AspectBatches, DetectionData, Mirrored
from detection.scoring import TYPES
from detection.training import DetectionRecipe, DetectorModule, evaluate, fit
from norton.data.datamodule import EpochSampler

pytestmark = pytest.mark.usefixtures("thin_heads_throughout")

RATES = "[0.75]*20"
KINDS = {"fasterrcnn": "boxes", "maskrcnn": "masks", "keypointrcnn": "keypoints"}
COUNTS = {"train": 6, "val": 2, "test": 2}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
# A mask or a keypoint of each of a hundred boxes would take most of the time.
FEW = {"rpn_post_nms_top_n_test": 20, "box_detections_per_img": 5}


def scenes_data(root, kind="boxes", **options):
    return DetectionData("scenes", kind, 2, root=root / "scenes", size=64, counts=COUNTS, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("detector, kind", KINDS.items())
def test_a_tiny_training(detector, kind, root, tmp_path):
    data = scenes_data(root, kind)
    options = {"num_keypoints": 4} if kind == "keypoints" else {}
    few = {"rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16, **FEW}
    small = {"min_size": 64, "max_size": 64, **few, **options}
    backbone = norton.build("resnet_50", 1, RATES)
    net = build_detector(detector, backbone, data.num_classes, **small)
    before = {name: p.clone() for name, p in net.named_parameters()}
    recipe = DetectionRecipe(epochs=1, learning_rate=0.01, warmup_steps=1, gradient_clip=1.0)
    trained = fit(net, data, recipe, folder=tmp_path, **QUIET)
    assert (tmp_path / "last.ckpt").exists()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert any(not torch.equal(p, before[name]) for name, p in trained.named_parameters())
    scores, _ = evaluate(trained, data, **QUIET)
    assert set(scores) == {"bbox", *{"masks": ["segm"], "keypoints": ["keypoints"]}.get(kind, [])}
    assert 0 <= scores["bbox"]["AP"] <= 1


class Stopped(Exception):
    """The machine is gone."""


def test_a_training_that_was_stopped_goes_on_to_the_same_weights(root, tmp_path, monkeypatch):
    data = scenes_data(root)
    small = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 4}
    net = build_detector("fasterrcnn", norton.build("resnet_50", 1, RATES), data.num_classes, **small)
    recipe = DetectionRecipe(epochs=2, learning_rate=0.01, warmup_steps=1, gradient_clip=1.0)
    whole = fit(net, data, recipe, folder=tmp_path / "whole", **QUIET)

    def stops(module, batch, number, step=DetectorModule.training_step):
        if (module.current_epoch, number) == (1, 1):
            raise Stopped
        return step(module, batch, number)

    with monkeypatch.context() as patch:
        patch.setattr(DetectorModule, "training_step", stops)
        with pytest.raises(Stopped):
            fit(net, data, recipe, folder=tmp_path / "stopped", **QUIET)
    resumed = fit(net, data, recipe, folder=tmp_path / "stopped", **QUIET)
    last = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "stopped")]
    assert all(torch.equal(value, last[1][key]) for key, value in last[0].items())
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_devices_share_the_images_and_put_together_what_they_found(root, monkeypatch):
    data = scenes_data(root)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("detection.data.devices", lambda rank=rank: (2, rank))
        shares.append([target["image_id"] for _, batch in data.val_dataloader(shared=True) for target in batch])
        assert len(next(iter(data.val_dataloader()))[0]) == COUNTS["val"]  # after training one device sees all
    assert shares == [[1], [2]]

    def gather(parts, mine):
        parts[:] = [[1], mine]

    monkeypatch.setattr(training.distributed, "all_gather_object", gather)
    assert training._of_all_devices([2], 2) == [1, 2]
    assert training._of_all_devices([2], 1) == [2]


@pytest.mark.parametrize("batch_size, devices, accumulated", [(2, 8, 1), (8, 1, 1), (4, 2, 3)])
def test_the_rate_is_scaled_by_the_images_of_a_step(batch_size, devices, accumulated):
    net = torch.nn.Module()
    net.rpn, net.roi_heads = torch.nn.Module(), torch.nn.Module()
    net.rpn.head, net.roi_heads.box_predictor = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    recipe = DetectionRecipe(epochs=1, learning_rate=0.02, warmup_steps=0)
    module = DetectorModule(net, recipe, SimpleNamespace(batch_size=batch_size, kind="boxes"))
    trainer = SimpleNamespace(world_size=devices, accumulate_grad_batches=accumulated, estimated_stepping_batches=9)
    module._trainer = trainer
    (group,) = module.configure_optimizers()["optimizer"].param_groups
    assert group["lr"] == pytest.approx(0.02 * batch_size * devices * accumulated / 16)


def test_boxes_are_exact_in_mixed_precision(root):
    """In bfloat16 a coordinate of 100 pixels has steps of half a pixel."""
    data = scenes_data(root)
    torch.manual_seed(0)
    options = {"box_score_thresh": 0.0, "min_size": 64, "max_size": 64, "rpn_post_nms_top_n_test": 20}
    net = build_detector("fasterrcnn", norton.build("resnet_50", 1, RATES), 11, **options).eval()
    _, results = evaluate(net, data, precision="bf16-mixed", **QUIET)
    values = torch.tensor([one["bbox"] for one in results]).flatten()
    assert (values != values.bfloat16().float()).float().mean() > 0.3


def test_only_the_images_that_were_looked_at_count(root):
    data = scenes_data(root)
    data.batch_size = 1
    found = {int(target["image_id"]): target for target in (data.images("test")[index][1] for index in range(2))}

    class Oracle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rpn, self.roi_heads = torch.nn.Module(), torch.nn.Module()
            self.rpn.head = self.roi_heads.box_predictor = torch.nn.Identity()
            self.turn = 0

        def forward(self, images):
            self.turn += 1
            target = found[self.turn]
            return [{"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}]

    scores, _ = evaluate(Oracle(), data, limit_test_batches=1, **QUIET)
    assert len(found[2]["boxes"]) > 0
    assert scores["bbox"]["AP"] == pytest.approx(1)


def coco_root(tmp_path):
    """A tiny COCO as on disk: a person, a crowd of category 90, and an image without anything."""
    (tmp_path / "annotations").mkdir()
    for year, shapes in (("train2017", [(60, 40), (40, 60), (50, 50)]), ("val2017", [(60, 40)])):
        (tmp_path / year).mkdir()
        images, objects = [], []
        for number, (width, height) in enumerate(shapes, 7):
            name = f"{number:012}.jpg"
            Image.new("RGB", (width, height), "grey").save(tmp_path / year / name)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            common = {"image_id": number, "area": 300.0, "bbox": [5, 5, 20, 30]}
            person = {"category_id": 1, "iscrowd": 0, "keypoints": [9, 9, 2] * 17, "num_keypoints": 17}
            if number != 9:
                corners = [[5, 5, 25, 5, 25, 35, 5, 35]]
                objects.append({"id": 2 * number, "segmentation": corners, **common, **person})
            everywhere = {"size": [height, width], "counts": [width * height]}
            crowd = {"category_id": 90, "iscrowd": 1, "segmentation": everywhere}
            objects.append({"id": 2 * number + 1, **common, **crowd})
        person, brush = {"id": 1, "name": "person", "keypoints": ["k"] * 17}, {"id": 90, "name": "toothbrush"}
        people = [one for one in objects if one["category_id"] == 1]
        for name, kinds, found in (("instances", [person, brush], objects), ("person_keypoints", [person], people)):
            content = {"images": images, "categories": kinds, "annotations": found}
            (tmp_path / "annotations" / f"{name}_{year}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize("kind, classes", [("boxes", 91), ("masks", 91), ("keypoints", 2)])
def test_coco_as_on_disk(kind, classes, tmp_path):
    data = DetectionData("coco", kind, 2, root=coco_root(tmp_path))
    assert data.num_classes == classes
    assert data.num_keypoints == (17 if kind == "keypoints" else None)
    assert data.categories[1] == "person"
    batches = list(data.train_dataloader())
    targets = [target for _, batch in batches for target in batch]
    assert sorted(target["image_id"] for target in targets) == [7, 8]  # a crowd alone teaches nothing
    for target in targets:
        assert target["labels"].tolist() == [1] and target["boxes"].shape == (1, 4)
    assert ("masks" in targets[0]) == (kind == "masks") and ("keypoints" in targets[0]) == (kind == "keypoints")
    assert [len(images) for images, _ in data.val_dataloader()] == [1]
    detector = next(name for name, learns in KINDS.items() if learns == kind)
    net = build_detector(detector, norton.build("resnet_50", 1, RATES), classes, min_size=64, **FEW)
    scores, _ = evaluate(net, data, **QUIET)
    assert list(scores) == list(TYPES[kind])


@pytest.mark.slow
def test_two_devices(tmp_path):
    tiny = f"data.size=64 data.counts={{train:8,val:4,test:2}} data.batch_size=2 data.root={tmp_path}/scenes"
    devices = "trainer.accelerator=cpu trainer.devices=2 trainer.strategy=ddp training.epochs=1"
    succeeds(f"python -m detection.train detector.options.min_size=64 rank=1 {tiny} {devices} out={tmp_path}/a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    succeeds(f"python -m detection.evaluate checkpoint={tmp_path}/a/model.pt {tiny} out={tmp_path}/b")
    assert metrics == json.loads((tmp_path / "b" / "metrics.json").read_text())  # of all test images, not a share


def test_the_published_schedule():
    recipe = DetectionRecipe(epochs=26, steps=[16, 22], warmup_steps=1000, warmup_factor=0.001)
    rates = [recipe.rate(step, 100) for step in (0, 500, 1000, 1599, 1600, 2199, 2200)]
    assert rates == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_batches_of_one_shape(batch_size):
    wide = [number % 3 == 0 for number in range(25)]
    sampler = EpochSampler(wide)
    batches = list(AspectBatches(sampler, wide, batch_size))
    assert sorted(index for batch in batches for index in batch) == list(range(25))
    assert len(batches) == len(AspectBatches(sampler, wide, batch_size)) == -(-25 // batch_size)
    mixed = [batch for batch in batches if len({wide[index] for index in batch}) > 1]
    assert len(mixed) <= 1  # where the leftovers of both meet
    sampler.set_epoch(1)
    assert list(AspectBatches(sampler, wide, batch_size)) != batches


class OneImage:
    """What `Mirrored` asks of its images."""

    def __init__(self, target):
        self.target = target

    def with_objects(self):
        return list(range(40))

    def __getitem__(self, index):
        return torch.arange(12.0).view(1, 3, 4), self.target


def test_mirroring():
    points = torch.zeros(1, 17, 3)
    points[0, 1] = torch.tensor([1.0, 2, 2])  # the left eye
    target = {"boxes": torch.tensor([[0.0, 0, 1, 2]]), "masks": torch.tensor([[[1, 0, 0, 0]]]), "keypoints": points}
    data = Mirrored(OneImage(target), 0, True, MIRRORED_PERSON)
    seen = [data[index] for index in range(40)]
    mirrored = [(image, found) for image, found in seen if image[0, 0, 0] == 3]
    assert 10 < len(mirrored) < 30
    for _, found in mirrored:
        assert found["boxes"].tolist() == [[3, 0, 4, 2]]
        assert found["masks"].tolist() == [[[0, 0, 0, 1]]]
        assert found["keypoints"][0, 2].tolist() == [3, 2, 2]  # now the right eye
        assert found["keypoints"].count_nonzero() == 3
    assert target["boxes"].tolist() == [[0, 0, 1, 2]]
    data.set_epoch(1)
    assert [torch.equal(data[index][0], seen[index][0]) for index in range(40)].count(False) > 5


def test_digits_are_not_mirrored(root):
    data = scenes_data(root)
    assert not data.train_dataloader().dataset.flip


@pytest.mark.parametrize("make, message", [
    (lambda root: DetectionData("nix", "boxes", 2), "unknown detection data 'nix'; choose one of scenes, coco"),
    (lambda root: DetectionData("coco", "boxes", 0), "batch_size is 0; it must be"),
    (lambda root: DetectionData("coco", "boxes", 2, root=root).images("val"), "no annotations at"),
    (lambda root: DetectionRecipe(epochs=-1), "training.epochs is -1"),
    (lambda root: DetectionRecipe(epochs=1, steps=[4, 2]), "rising epochs"),
    (lambda root: DetectionRecipe(epochs=1, learning_rate="x"), "training.learning_rate is 'x'"),
])  # fmt: skip
def test_bad_input(make, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        make(tmp_path)
