"""Distillation: the loss is that of the papers, the teacher stays as it was, and a student learns to agree with it."""

import math

import pytest
import torch
from helpers.training import QUIET, copied, digits, network, same, some
from torch import nn

import norton
from norton.data.datamodule import ClassificationData
from norton.decomposition.svd import SVDLinear
from norton.training import Classifier, Distillation, Recipe, fit
from norton.training.distillation import feature_loss, last_linear, run, soft_target_loss


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return fit(network(seed=1), digits(), Recipe(3, learning_rate=0.2), folder=tmp_path_factory.mktemp("t"), **QUIET)


def module(student, teacher, recipe):
    """As `fit` makes it, without a trainer."""
    options = {"weight": recipe.distill_weight, "features": recipe.distill_features}
    taught = Distillation(student, teacher, some()[0], temperature=recipe.temperature, **options)
    made = Classifier(student, recipe, 10, taught).train()
    made._log = lambda *_, **__: None
    return made


def softmax(logits, temperature):
    powers = [math.exp(x / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


def literal(student, teacher, labels, weight, temperature, smoothing=0.0):
    """Hinton et al. 2015, image by image and class by class."""
    total = 0.0
    for ours, theirs, label in zip(student, teacher, labels, strict=True):
        classes = len(ours)
        hard = [(1 - smoothing) * (k == label) + smoothing / classes for k in range(classes)]
        entropy = -sum(h * math.log(p) for h, p in zip(hard, softmax(ours, 1), strict=True))
        pairs = zip(softmax(theirs, temperature), softmax(ours, temperature), strict=True)
        divergence = sum(p * math.log(p / q) for p, q in pairs)
        total += (1 - weight) * entropy + weight * temperature**2 * divergence
    return total / len(labels)


# The loss


@pytest.mark.quick
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_soft_targets_are_literal(temperature):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (3 * torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = literal(ours.tolist(), theirs.tolist(), [0] * 5, 1, temperature)
    assert soft_target_loss(ours, theirs, temperature).item() == pytest.approx(expected, rel=1e-10)
    assert soft_target_loss(theirs + 2, theirs, temperature).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.quick
def test_features_are_compared_relative_to_the_teachers():
    theirs = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    ours = theirs + 0.1
    expected = sum((a - b) ** 2 for a, b in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True))
    expected /= sum(b**2 for b in theirs.flatten().tolist())
    assert feature_loss(ours, theirs).item() == pytest.approx(expected, rel=1e-5)
    assert feature_loss(1000 * ours, 1000 * theirs).item() == pytest.approx(expected, rel=1e-5)
    assert feature_loss(torch.zeros(6, 5), theirs).item() == pytest.approx(1)
    assert feature_loss(theirs, torch.zeros(6, 5)).isfinite()


@pytest.mark.quick
def test_losses_of_half_precision_are_computed_in_single():
    ours, theirs = torch.full((2, 4), 300.0), torch.full((2, 4), 299.0)  # squares beyond the range of float16
    for loss in (feature_loss(ours.half(), theirs.half()), soft_target_loss(ours.half(), theirs.half(), 1.0)):
        assert loss.dtype == torch.float32 and loss.isfinite()


def test_a_training_step_is_the_sum_of_its_terms(teacher):
    student, (images, labels) = network(), some()
    recipe = Recipe(
        1, label_smoothing=0.1, sparsity=0.01, distill=True, temperature=3.0, distill_weight=0.4, distill_features=0.5
    )
    loss = module(student, teacher, recipe).training_step((images, labels), 0).item()
    with torch.no_grad():
        features, hints = student[:-1](images), teacher[:-1](images)  # statistics of this batch, and running ones
        logits, targets = student[-1](features), teacher[-1](hints)
    expected = literal(logits.tolist(), targets.tolist(), labels.tolist(), 0.4, 3.0, smoothing=0.1)
    expected += 0.5 * ((features - hints).square().sum() / hints.square().sum()).item()
    expected += 0.01 * student[1].weight.abs().sum().item()
    assert loss == pytest.approx(expected, rel=1e-5)


def test_without_weight_it_is_the_plain_loss(teacher):
    batch, found = some(), []
    for recipe in (Recipe(1, distill=True, distill_weight=0.0), None):
        student = network()
        plain = Classifier(student, Recipe(1), 10).train()
        plain._log = lambda *_, **__: None
        loss = (module(student, teacher, recipe) if recipe else plain).training_step(batch, 0)
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in student.parameters())])
    for taught, alone in zip(*found, strict=True):
        assert torch.equal(taught, alone)


@pytest.mark.parametrize("width", [16, 5])
def test_gradients_reach_the_student_alone(width, teacher):
    before = copied(teacher)
    made = module(network(width), teacher, Recipe(1, distill=True, distill_features=1.0))
    made.training_step(some(), 0).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())
    frozen = made.distillation.teacher.net
    assert not frozen.training and not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert same(copied(frozen), before) and same(copied(teacher), before)
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("width", [16, 5])
def test_features_alone_teach_all_but_the_classifier(width, teacher):
    student = network(width)
    made = Distillation(student, teacher, some()[0], temperature=1.0, weight=0.0, features=1.0)
    made(student, some()[0])[1].backward()
    assert [bool(student[i].weight.grad.any()) for i in (0, 1, 5)] == [True, True, False]


# Features


def test_a_narrower_student_begins_with_the_least_squares_map(teacher):
    images, student = some(64)[0], network(5).eval()
    made = Distillation(student, teacher, images, temperature=1.0, weight=0.0, features=1.0)
    with torch.no_grad():
        ours, theirs = student[:-1](images).double(), teacher[:-1](images).double()
    ridge = ours.square().sum(0).mean()
    # Ridge regression as plain least squares with rows for the ridge below.
    rows = torch.cat([ours, ridge.sqrt() * torch.eye(20)]), torch.cat([theirs, torch.zeros(20, 64)])
    expected = torch.linalg.lstsq(*rows).solution.T
    torch.testing.assert_close(made.map.detach().double(), expected, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        begin = made(student, images)[1].item()
    assert begin == pytest.approx(feature_loss(ours @ expected.T, theirs).item(), rel=1e-3)
    assert begin < 0.5


def test_dead_features_begin_with_nothing(teacher):
    student = network(5)
    nn.init.zeros_(student[1].weight), nn.init.zeros_(student[1].bias)
    made = Distillation(student.eval(), teacher, some()[0], temperature=1.0, weight=0.0, features=1.0)
    assert not made.map.any()
    assert made(student, some()[0])[1].item() == pytest.approx(1)


@pytest.mark.quick
def test_the_last_linear_layer_may_be_decomposed():
    net = network()
    net[-1] = SVDLinear.from_conv(net[-1], 3)
    assert last_linear(net, "student") == "5"
    images = some(4)[0]
    torch.testing.assert_close(run(net, images, "5")[1], net[:-1](images))
    assert not any(layer._forward_pre_hooks for layer in net.modules())


@pytest.mark.parametrize("arch, layer, width", [
    ("vgg_16_bn", "classifier.linear2", 512), ("resnet_110", "linear", 64), ("densenet_40", "fc", 456),
])  # fmt: skip
def test_the_features_of_published_networks(arch, layer, width):
    net = norton.build(arch).eval()
    assert last_linear(net, "student") == layer
    assert run(net, torch.zeros(2, 3, 32, 32), layer)[1].shape == (2, width)


# A training


def disagreement(net, teacher):
    with torch.no_grad():
        return soft_target_loss(net(some(500)[0]), teacher(some(500)[0]), 1.0).item()


def test_a_taught_student_agrees_better(teacher, tmp_path):
    before, found, damaged = copied(teacher), {}, network()
    generator = torch.Generator().manual_seed(0)
    damaged.load_state_dict(before)
    for weight in damaged.parameters():
        weight.data += 0.5 * weight.std().item() * torch.randn(weight.shape, generator=generator)
    for distill in (False, True):
        recipe = Recipe(1, learning_rate=0.05, distill=distill, distill_features=1.0)
        who = {"teacher": teacher} if distill else {}
        found[distill] = fit(damaged, digits(), recipe, folder=tmp_path / str(distill), **who, **QUIET)
    assert disagreement(found[True], teacher) < 0.75 * disagreement(found[False], teacher)
    assert disagreement(found[False], teacher) < 0.5 * disagreement(damaged.eval(), teacher)
    assert same(copied(teacher), before) and not teacher.training
    assert list(found[True].state_dict()) == list(before)


class StopsAfterOneEpoch(ClassificationData):
    """Training data that end in an error when the second epoch asks for them."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        start = loader.sampler.set_epoch

        def set_epoch(epoch):
            if epoch == 1:
                raise KeyboardInterrupt
            start(epoch)

        loader.sampler.set_epoch = set_epoch
        return loader


def test_resumed_training_ends_like_an_uninterrupted_one(teacher, tmp_path):
    recipe = Recipe(2, learning_rate=0.1, distill=True, distill_features=1.0)
    given = {"teacher": teacher, "limit_train_batches": 10, **QUIET}
    whole = fit(network(5), digits(), recipe, folder=tmp_path / "whole", **given)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(network(5), StopsAfterOneEpoch("mnist5k", 100), recipe, folder=tmp_path / "killed", **given)
    state = torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)
    assert state["epoch"] == 0
    # The student, the map between their features, and nothing of the teacher.
    names = {f"net.{name}" for name in network(5).state_dict()} | {"distillation.map"}
    assert {name for name in state["state_dict"] if not name.startswith("accuracy.")} == names
    assert state["state_dict"]["distillation.map"].shape == (64, 20)
    resumed = fit(network(5), digits(), recipe, folder=tmp_path / "killed", **given)
    assert same(copied(resumed), copied(whole))
    last = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "killed")]
    maps = [state["state_dict"]["distillation.map"] for state in last]
    assert torch.equal(*maps)
    fresh = Distillation(network(5), teacher, some()[0], temperature=1.0, weight=0.9, features=1.0).map
    assert not torch.allclose(fresh, maps[0], rtol=1e-3)


def test_mixed_precision(teacher, tmp_path):
    recipe = Recipe(1, distill=True, distill_features=1.0)
    for precision in ("bf16-mixed", "bf16-true"):
        few = {"precision": precision, "limit_train_batches": 2, "limit_val_batches": 1, **QUIET}
        fitted = fit(network(5), digits(), recipe, folder=tmp_path / precision, teacher=teacher, **few)
        assert all(value.isfinite().all() for value in fitted.state_dict().values())


# Bad input


@pytest.mark.quick
@pytest.mark.parametrize("setting, message", [
    ({"distill": "yes"}, r"training\.distill is 'yes'; it must be true or false"),
    ({"distill": 1}, r"training\.distill is 1"),
    ({"temperature": 0}, r"training\.temperature is 0; it must be above 0"),
    ({"temperature": -1.0}, r"training\.temperature is -1\.0"),
    ({"distill_weight": 1.5}, r"training\.distill_weight is 1\.5; it must be in \[0, 1\]"),
    ({"distill_weight": -0.5}, r"training\.distill_weight is -0\.5"),
    ({"distill_features": math.nan}, r"training\.distill_features is nan"),
    ({"distill_features": True}, r"training\.distill_features is True"),
])  # fmt: skip
def test_bad_recipes(setting, message):
    with pytest.raises(norton.InputError, match=message):
        Recipe(epochs=1, **setting)


def of_classes(number):
    return nn.Sequential(*network()[:-1], nn.Linear(64, number))


class Convolutional(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Attentive(Convolutional):
    """Its only linear layer is not the one that classifies."""

    def __init__(self):
        super().__init__()
        self.insert(0, nn.Linear(32, 32))


FEATURES = {"distill": True, "distill_features": 1.0}
SOFT = {"distill": True}


@pytest.mark.parametrize("student, teacher, recipe, message", [
    (network(), None, SOFT, r"training\.distill is true, and there is no teacher"),
    (network(), network(), {}, r"there is a teacher, and training\.distill is false"),
    (network(), of_classes(7), SOFT, "the teacher gives 7 numbers per image, the student 10"),
    (network(), nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), SOFT, r"teacher takes no images of size \(3, 32, 32\)"),
    (network(), nn.Conv2d(3, 10, 3), SOFT, "the teacher gives no logits"),
    (network(), Convolutional(), FEATURES, "last linear layer of the teacher, and it has none"),
    (Convolutional(), network(), FEATURES, "last linear layer of the student, and it has none"),
    (Attentive(), network(), FEATURES, "of the student, and its last one, 0, does not give the logits"),
])  # fmt: skip
def test_bad_teachers(student, teacher, recipe, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        fit(student, digits(), Recipe(1, **recipe), folder=tmp_path, teacher=teacher, **QUIET)
    assert not list(tmp_path.iterdir())
