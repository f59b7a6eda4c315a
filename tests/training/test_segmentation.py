"""Segmentation: loss and scores against loops, pixels that do not count, outputs of any kind, and what is refused."""

import lightning
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.segmentation import IGNORED, Small, WithAuxiliary, seeded, write_folder
from helpers.training import QUIET, digits, network
from torch import nn

import norton
from norton.data.datamodule import ClassificationData
from norton.training import Distillation, Recipe, Segmenter, evaluate, fit


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ClassificationData("segmentation", 4, root=write_folder(tmp_path_factory.mktemp("scenes")), size=16)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    recipe = Recipe(epochs=12, learning_rate=0.2, warmup_epochs=1)
    return fit(seeded(), data, recipe, folder=tmp_path_factory.mktemp("trained"), **QUIET)


def literal(predicted, masks, classes=3):
    """Mean IoU over the classes that occur, accuracy of pixels, both in percent: sets of pixels, counted one by one."""
    counted = masks != IGNORED
    ious = []
    for label in range(classes):
        ours, theirs = (predicted == label) & counted, (masks == label) & counted
        if (ours | theirs).any():
            ious.append((ours & theirs).sum() / (ours | theirs).sum())
    return 100 * np.mean(ious), 100 * (predicted == masks)[counted].mean()


@torch.no_grad()
def answers(net, data):
    images, masks = data.labelled("test", len(data.splits.test))
    logits = F.interpolate(net.eval()(images), size=(16, 16), mode="bilinear", align_corners=False)
    return logits, masks


@pytest.mark.parametrize("which", ["trained", "random"])
def test_scores_are_the_literal_ones(data, trained, which):
    net = trained if which == "trained" else seeded()
    logits, masks = answers(net, data)
    miou, accuracy = literal(logits.argmax(1).numpy(), masks.numpy())
    found = evaluate(net, data, **QUIET)
    assert list(found) == ["miou", "pixel_accuracy", "loss"]
    assert found["miou"] == pytest.approx(miou, abs=1e-3) and found["pixel_accuracy"] == pytest.approx(
        accuracy, abs=1e-3
    )
    counted = masks != IGNORED
    picked = logits.log_softmax(1).movedim(1, -1)[counted].gather(1, masks[counted][:, None])
    assert found["loss"] == pytest.approx(-picked.mean().item(), rel=1e-4)


def test_it_learns(data, trained):
    assert evaluate(seeded(), data, **QUIET)["miou"] < 40 < 80 < evaluate(trained, data, **QUIET)["miou"]


def test_absent_classes_do_not_count():
    """Of five classes two occur, and one is predicted wrongly."""
    masks = torch.tensor([[[0, 0, 1, IGNORED]]])
    logits = F.one_hot(torch.tensor([[[0, 0, 3, 4]]]), 5).movedim(-1, 1).float()
    module = Segmenter(nn.Identity(), Recipe(epochs=0), 5, IGNORED)
    predicted, _ = module.judge(logits, masks)
    for name, expected in (("miou", (1 + 0 + 0) / 3), ("pixel_accuracy", 2 / 3)):
        assert module.scores[f"test_{name}"](predicted, masks).item() == pytest.approx(expected)


def test_ignored_pixels_count_for_nothing():
    torch.manual_seed(0)
    module = Segmenter(nn.Identity(), Recipe(epochs=0, label_smoothing=0.1), 3, IGNORED)
    logits, masks = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 4, 4))
    masks[:, 0] = IGNORED
    other = logits.clone()
    other[:, :, 0] = 50 * torch.randn(2, 3, 4)
    for part in ("learn", "judge"):
        losses = [getattr(module, part)(some, masks)[1] for some in (logits, other)]
        assert torch.equal(*losses) and losses[0] > 0
    expected = F.cross_entropy(logits[:, :, 1:], masks[:, 1:], label_smoothing=0.1)
    torch.testing.assert_close(module.learn(logits, masks)[1], expected)
    assert module.learn(logits, torch.full_like(masks, IGNORED))[1] == 0  # torch's own mean would be no number
    assert Segmenter(nn.Identity(), Recipe(epochs=0), 3, None).count(masks.clamp(max=2)) == 32


def test_the_auxiliary_output_trains_along(data):
    net = seeded(WithAuxiliary)
    images, masks = next(iter(data.val_dataloader()))
    module = Segmenter(net, Recipe(), 3, IGNORED)
    output = {name: F.interpolate(x, size=(16, 16), mode="bilinear") for name, x in net(images).items()}
    main, auxiliary = (F.cross_entropy(output[name], masks, ignore_index=IGNORED) for name in ("out", "aux"))
    torch.testing.assert_close(module.learn(images, masks)[1], main + 0.5 * auxiliary)
    net.eval()
    output = F.interpolate(net(images)["out"], size=(16, 16), mode="bilinear")
    torch.testing.assert_close(module.judge(images, masks)[1], F.cross_entropy(output, masks, ignore_index=IGNORED))


class Tuple(Small):
    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize("net, message", [
    (Small(4), "gives 4 numbers for each pixel, and the data have 3 classes; make it with model.num_classes=3"),
    (Tuple(), "gives a tuple for a batch of images, and segmentation wants logits"),
    (nn.Sequential(Small(), nn.Flatten()), r"gives \(4, 192\) for a batch of images"),
])  # fmt: skip
def test_outputs_that_are_no_logits_of_pixels(data, net, message):
    with pytest.raises(norton.InputError, match=message):
        evaluate(net, data, **QUIET)


def test_data_of_another_task(data, tmp_path):
    with pytest.raises(norton.InputError, match=r"gives \(100, 8, 16, 16\) .* choose data=segmentation"):
        evaluate(network(8)[:3] + nn.Sequential(nn.Upsample(size=(16, 16))), digits(), **QUIET)
    with pytest.raises(norton.InputError, match=r"last linear layer of a classifier reads, and the data segmentation"):
        recipe = Recipe(distill=True, distill_features=1.0)
        fit(seeded(), data, recipe, teacher=seeded(), folder=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir())


# Distillation


def literal_soft_targets(student, teacher, masks, temperature):
    """Hinton et al. 2015 for each pixel that counts, one after the other: the mean of T² Σ p log(p / q)."""
    found = []
    pixels = (x.movedim(1, -1).flatten(0, 2) for x in (student, teacher))
    for ours, theirs, label in zip(*pixels, masks.flatten(), strict=True):
        if label != IGNORED:
            p, q = (x.double() / temperature for x in (theirs, ours))
            found.append(temperature**2 * (p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum().item())
    return np.mean(found)


class Fine(Small):
    """Logits of the whole height and width, alone."""

    def forward(self, x):
        return F.interpolate(super().forward(x), scale_factor=2)


def test_soft_targets_of_each_pixel_that_counts(data):
    """The teacher's logits are of another size than the student's, both are brought to that of the masks."""
    student, teacher = seeded(WithAuxiliary), seeded(Fine, 1).eval()
    images, masks = next(iter(data.val_dataloader()))
    taught = Distillation(student, teacher, images, temperature=3.0, weight=0.4, pixels=True)
    module = Segmenter(student, Recipe(), 3, IGNORED, taught)
    output = {name: F.interpolate(x, size=(16, 16), mode="bilinear") for name, x in student(images).items()}
    hard = [F.cross_entropy(output[name], masks, ignore_index=IGNORED).item() for name in ("out", "aux")]
    soft = literal_soft_targets(output["out"], teacher(images), masks, 3.0)
    _, loss = module.learn(images, masks)
    assert loss.item() == pytest.approx(0.6 * (hard[0] + 0.5 * hard[1]) + 0.4 * soft, rel=1e-5)
    loss.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in student.head.parameters())
    assert module.learn(images, torch.full_like(masks, IGNORED))[1] == 0


def test_a_student_learns_what_only_its_teacher_knows(data, trained, tmp_path):
    """The masks to train on name other classes; those to validate on are true, and so pick the epoch."""
    wrong = [(x, torch.where(masks == IGNORED, masks, (masks + 1) % 3)) for x, masks in data.train_dataloader()]
    known, found = list(data.val_dataloader()), {}
    for distill in (False, True):
        recipe = Recipe(epochs=12, learning_rate=0.2, warmup_epochs=1, distill=distill, distill_weight=1.0)
        who = {"teacher": trained} if distill else {}
        net = fit(seeded(), (wrong, known), recipe, folder=tmp_path / str(distill), **who, **QUIET)
        found[distill] = evaluate(net, data, **QUIET)["miou"]
    assert found[False] < 50 < 75 < found[True]


@pytest.mark.parametrize("teacher, message", [
    (Small(4), "the teacher gives 4 numbers per pixel, the student 3; give a teacher of the same classes"),
    (network(), r"the teacher gives no logits \(N, classes, H, W\)"),
    (nn.Conv2d(1, 3, 3), r"the teacher takes no images of size \(3, 16, 16\)"),
])  # fmt: skip
def test_bad_teachers(data, teacher, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        fit(seeded(), data, Recipe(distill=True), teacher=teacher, folder=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir())


def test_the_best_epoch_by_mean_iou_is_kept(data, tmp_path):
    seen = []

    class Spy(lightning.Callback):
        def on_validation_epoch_end(self, trainer, module):
            seen.append(float(trainer.callback_metrics["val/miou"]))

    net = fit(seeded(), data, Recipe(epochs=4, learning_rate=0.2), folder=tmp_path, callbacks=[Spy()], **QUIET)
    assert evaluate(net, data, split="val", **QUIET)["miou"] == pytest.approx(100 * max(seen), abs=1e-3)


@pytest.mark.parametrize("make", [WithAuxiliary, Tuple])
def test_label_free_verbs_take_any_output(make, data):
    """Decomposed and pruned for outputs, BatchNorm adapted, deployed: what the network gives keeps its kind."""
    net, images = seeded(make).eval(), data.calibration_images(8)
    small = norton.decompose(net, 2, objective="outputs", images=images, starts=1)
    small = norton.prune(small, 0.25, criterion="l2", options=norton.PruneOptions(compensate="outputs"), images=images)
    adapted = norton.calibration.adapt_batchnorm_(small, net, images[:4], images[4:])
    assert adapted is not None and norton.complexity(small).macs < norton.complexity(net).macs
    expected, found = small.eval()(images), norton.deploy(small, images)(images)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
