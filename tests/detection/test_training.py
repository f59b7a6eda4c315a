"""Loaders, the published schedule, and a tiny training of each detector."""

import pytest
import torch

import norton
from detection import build_detector
from detection.data import MIRRORED_PERSON, AspectBatches, DetectionData, Mirrored
from detection.training import DetectionRecipe, evaluate, fit
from norton.data.datamodule import EpochSampler

KINDS = {"fasterrcnn": "boxes", "maskrcnn": "masks", "keypointrcnn": "keypoints"}
COUNTS = {"train": 6, "val": 2, "test": 2}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def scenes_data(root, kind="boxes", **options):
    return DetectionData("scenes", kind, 2, root=root / "scenes", size=64, counts=COUNTS, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("detector, kind", KINDS.items())
def test_a_tiny_training(detector, kind, root, tmp_path):
    data = scenes_data(root, kind)
    options = {"num_keypoints": 4} if kind == "keypoints" else {}
    small = {"min_size": 64, "max_size": 64, "rpn_post_nms_top_n_train": 20, "box_batch_size_per_image": 16, **options}
    backbone = norton.build("resnet_50", 1, "[0.]+[0.1]*2+[0.4]*5+[0.75]*12")
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
    (lambda root: DetectionData("coco", "boxes", 0), "batch_size 0 must be"),
    (lambda root: DetectionData("coco", "boxes", 2, root=root).images("val"), "no annotations at"),
    (lambda root: DetectionRecipe(epochs=-1), "training.epochs is -1"),
    (lambda root: DetectionRecipe(epochs=1, steps=[4, 2]), "rising epochs"),
    (lambda root: DetectionRecipe(epochs=1, learning_rate="x"), "training.learning_rate is 'x'"),
])  # fmt: skip
def test_bad_input(make, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        make(tmp_path)
