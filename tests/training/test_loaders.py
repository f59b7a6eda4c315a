"""Loaders of a user in the place of data: trained on, measured, and refused where they are none."""

import pytest
import torch
from helpers.training import QUIET, digits, network
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import norton
from norton.training import Recipe, evaluate, fit

RECIPE = Recipe(epochs=4, learning_rate=0.2)


def pairs(split, count=2000):
    return TensorDataset(*digits().labelled(split, count))


def loaders():
    torch.manual_seed(0)
    return DataLoader(pairs("train"), batch_size=50, shuffle=True), DataLoader(pairs("val", 200), batch_size=100)


def test_loaders_are_trained_on_and_measured(tmp_path):
    net, (train, val) = network(), loaders()
    net.normalisation = ((0.5,), (0.25,))
    trained = fit(net, (train, val), RECIPE, folder=tmp_path, **QUIET)
    images, labels = val.dataset.tensors
    with torch.no_grad():
        literal = 100 * (trained(images).argmax(1) == labels).double().mean().item()
    assert evaluate(net, val, **QUIET)["top1"] < 35 < 60 < literal
    assert evaluate(trained, val, **QUIET)["top1"] == pytest.approx(literal, abs=1e-3)
    assert trained.normalisation == net.normalisation  # loaders tell nothing of it
    batches = list(zip(images.split(64), labels.split(64), strict=True))
    assert evaluate(trained, batches, **QUIET)["top1"] == pytest.approx(literal, abs=1e-3)
    assert evaluate(trained, (None, val), split="val", **QUIET)["top1"] == pytest.approx(literal, abs=1e-3)


def test_loaders_of_masks_train_by_pixels(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(8, 3, 8, 8)
    masks = (images[:, 0] > 0.5).long()
    masks[:, 0] = 255  # not to be counted
    batches = DataLoader(TensorDataset(images, masks), batch_size=4)
    trained = fit(
        nn.Conv2d(3, 2, 1), (batches, batches), Recipe(epochs=20, learning_rate=1.0), folder=tmp_path, **QUIET
    )
    assert (found := evaluate(trained, batches, **QUIET))["miou"] > 85
    assert evaluate(trained, [(images, masks.byte())], **QUIET)["miou"] == pytest.approx(found["miou"])
    with pytest.raises(norton.InputError, match=r"of torch\.int64 and shape \(8, 1, 8, 8\); .* numbers, \(8, H, W\)"):
        evaluate(trained, [(images, masks[:, None])], **QUIET)


def test_data_of_another_number_of_classes(tmp_path):
    five = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5))
    message = "the network tells 5 classes apart, the data have 10; give a network of 10 classes, or other data"
    with pytest.raises(norton.InputError, match=message):
        evaluate(five, digits(), **QUIET)
    for sparsity in (0.0, 1e-4):  # with and without a look at the validation images first
        with pytest.raises(norton.InputError, match=message):
            fit(five, digits(), Recipe(epochs=1, sparsity=sparsity), folder=tmp_path, **QUIET)


def test_labels_that_are_no_classes():
    images = torch.rand(4, 3, 32, 32)
    for labels in (torch.rand(4), torch.eye(4), torch.arange(3), torch.zeros(4, 1, dtype=torch.int64)):
        with pytest.raises(norton.InputError, match=r"gives labels of .*; for such a network .* whole numbers, \(4,\)"):
            evaluate(network(), [(images, labels)], **QUIET)


@pytest.mark.parametrize("label, found", [(12, "12"), (-1, "-1"), (-100, "-100")])
def test_a_label_outside_of_the_classes_is_named(label, found, tmp_path):
    images, labels = pairs("val", 20).tensors
    labels = labels.clone()
    labels[7] = label
    batches = [(images, labels)]
    said = f"a label is {found}; the network tells 10 classes apart, whose labels are 0 to 9"
    with pytest.raises(norton.InputError, match=said):
        evaluate(network(), batches, **QUIET)
    with pytest.raises(norton.InputError, match=said):
        fit(network(), (batches, batches), RECIPE, folder=tmp_path, **QUIET)


@pytest.mark.parametrize("change, said", [
    (lambda x, y: (x, y.float()), r"labels are of torch\.float32; give the numbers of classes, whole ones, 0 to 9"),
    (lambda x, y: (x.byte(), y), r"the network does not take images of torch\.uint8 \(Input type"),
])  # fmt: skip
def test_later_batches_are_looked_at_too(change, said, tmp_path):
    good = tuple(pairs("val", 20).tensors)
    batches = [good, change(*good)]
    with pytest.raises(norton.InputError, match=said):
        evaluate(network(), batches, **QUIET)
    with pytest.raises(norton.InputError, match=said):
        fit(network(), (batches, [good]), RECIPE, folder=tmp_path, **QUIET)


@pytest.mark.parametrize("images_of, labels_of", [
    (torch.float64, torch.int32),
    (torch.float16, torch.uint8),
])  # fmt: skip
def test_other_types_of_numbers_are_taken(images_of, labels_of):
    images, labels = pairs("val", 50).tensors
    expected = evaluate(network(), [(images.to(images_of).float(), labels)], **QUIET)
    assert evaluate(network(), [(images.to(images_of), labels.to(labels_of))], **QUIET) == expected


def test_images_in_whole_numbers_are_the_networks_matter():
    images, labels = pairs("val", 50).tensors
    batches = [((images * 255).to(torch.uint8), labels)]
    with pytest.raises(norton.InputError, match="the network does not take the batches for val: "):
        evaluate(network(), batches, **QUIET)

    class Scaling(nn.Sequential):
        def forward(self, x):
            return super().forward(x.float() / 255)

    assert evaluate(Scaling(network()), batches, **QUIET)["top1"] >= 0


def test_a_student_learns_from_loaders(tmp_path):
    recipe = Recipe(epochs=1, learning_rate=0.1, distill=True, distill_features=1.0)
    trained = fit(network(), loaders(), recipe, folder=tmp_path, teacher=network(width=8), **QUIET)
    assert not torch.equal(trained[0].weight, network()[0].weight)


@pytest.mark.parametrize("data, message", [
    (lambda pair: pair[0], r"data have no loader for train; give \(train, val\)"),
    (lambda pair: (pair[0],), r"data are tuple; give \(train, val\)"),
    (lambda pair: ("train", 3), r"data are tuple; give \(train, val\)"),
    (lambda pair: (pair[0], iter(pair[1])), "an iterator, which can be read only once"),
    (lambda pair: (pair[0], [torch.zeros(2, 3, 32, 32)]), r"the loader for val gives a Tensor; give \(train, val\)"),
    (lambda pair: (pair[0], []), "the loader for val gives no batch"),
    (lambda pair: (pair[0], [(torch.zeros(2, 1, 32, 32), torch.zeros(2))]), "does not take the batches for val"),
])  # fmt: skip
def test_what_is_no_loader(data, message, tmp_path):
    with pytest.raises(norton.InputError, match=message):
        fit(network(), data(loaders()), RECIPE, folder=tmp_path, **QUIET)
    assert not list(tmp_path.iterdir())


def test_a_network_that_gives_no_logits():
    with pytest.raises(norton.InputError, match="gives no logits"):
        evaluate(nn.Flatten(0), loaders()[1], **QUIET)
