"""Images of whatever a user has: what the network takes goes in, labels and the rest do not."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import norton
from norton.calibration import loaders, read_images, reestimate_batchnorm_
from norton.common.errors import NortonWarning


class Two(nn.Module):
    """Takes an image and, if one is there, a mask or a switch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x, mask=None, *, scale=1.0):
        y = self.conv(x) * scale
        return y if mask is None else y * mask


@pytest.fixture
def images():
    return torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))


LABELS = torch.arange(10) % 4


def net_of(layer=None):
    torch.manual_seed(0)
    return nn.Sequential(layer or nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)).eval()


def test_every_form_gives_the_same_tensor(images):
    with_labels = TensorDataset(images, LABELS)
    named = [{"pixel_values": images[:6], "labels": LABELS[:6]}, {"pixel_values": images[6:], "labels": LABELS[6:]}]
    forms = [
        images,
        list(images.split(4)),
        iter(images.split(4)),
        with_labels,
        DataLoader(with_labels, batch_size=4),
        DataLoader(images, batch_size=3),
        [(images[:4], LABELS[:4]), (images[4:], LABELS[4:])],
        ([x, y, ["a.png"] * len(x)] for x, y in DataLoader(with_labels, batch_size=5)),
    ]
    for form in forms:
        found, _ = read_images(net_of(), form)
        torch.testing.assert_close(found, images, rtol=0, atol=0)
    found, labels = read_images(_Named(), named)
    assert [list(batch) for batch in found] == [["pixel_values"]] * 2
    torch.testing.assert_close(labels, LABELS, rtol=0, atol=0)


class _Named(nn.Module):
    def forward(self, pixel_values, output_maps=False):
        return pixel_values


def test_labels_come_along_unless_somebody_gives_others(images):
    loader = DataLoader(TensorDataset(images, LABELS), batch_size=4)
    torch.testing.assert_close(read_images(net_of(), loader)[1], LABELS, rtol=0, atol=0)
    torch.testing.assert_close(read_images(net_of(), loader, 3 - LABELS)[1], 3 - LABELS, rtol=0, atol=0)
    assert read_images(net_of(), [images, images])[1] is None
    mixed = [(images, LABELS), images]  # labels of a part alone would be those of others
    assert read_images(net_of(), mixed)[1] is None


def test_what_a_network_can_take_it_gets_but_for_labels(images):
    mask = torch.rand(10, 1, 6, 6)
    (pair,), labels = read_images(Two(), [(images, mask)])
    assert pair[1] is mask and labels is None
    found, labels = read_images(Two(), [(images, LABELS)])  # labels are no mask
    assert found.shape == images.shape and labels is not None
    (example,), _ = read_images(Two(), [{"x": images, "scale": 2.0, "path": "a.png"}])
    assert set(example) == {"x", "scale"}


class Switched(nn.Module):
    def forward(self, x, return_features=False, targets=None):
        assert return_features is False and targets is None
        return x


@pytest.mark.parametrize("labels", [torch.rand(10, 2), torch.arange(10) > 4, torch.arange(10).byte(), LABELS])
def test_labels_of_any_kind_are_no_switch_and_no_target(labels, images):
    for batch in ([images, labels], [images, labels, labels], {"x": images, "targets": labels}):
        found, _ = read_images(Switched(), [batch])
        assert torch.equal(found if isinstance(found, torch.Tensor) else found[0]["x"], images)


def test_a_whole_training_set_is_read_only_as_far_as_needed(images, monkeypatch):
    monkeypatch.setattr(loaders, "MOST", 7)
    read = []

    def batches():
        while True:
            read.append(1)
            yield images[:3]

    with pytest.warns(UserWarning, match="the first 9 are used"):
        found, _ = read_images(net_of(), batches())
    assert len(found) == 9 and len(read) == 4  # one more, to know that there are more
    assert len(read_images(net_of(), [images[:3]] * 5)[0]) == 15  # of a list somebody made all count


def test_a_dataset_is_read_from_all_over_it(images, monkeypatch):
    monkeypatch.setattr(loaders, "MOST", 4)
    with pytest.warns(NortonWarning, match="4 of 10 are used"):
        found, labels = read_images(net_of(), TensorDataset(images, torch.arange(10)))
    assert labels.tolist() == [0, 2, 5, 7]  # a dataset may be sorted by class
    torch.testing.assert_close(found, images[labels], rtol=0, atol=0)


def test_a_batch_with_labels_is_no_list_of_batches(images):
    for batch in ((images, LABELS), [images, LABELS]):
        with pytest.raises(norton.InputError, match=r"give a list of batches, \[\(images, labels\)\]"):
            norton.decompose(net_of(), rank=1, images=batch)


def test_a_generator_is_read_once(images):
    generator = (x for x in images.split(5))
    norton.decompose(net_of(), 2, images=generator)
    with pytest.raises(norton.InputError, match=r"generator gives no batch.*read only once"):
        norton.decompose(net_of(), 2, images=generator)
    with pytest.raises(norton.InputError, match="calibration images as str"):
        norton.decompose(net_of(), 2, images="pictures")


def test_verbs_do_with_a_loader_what_they_do_with_a_tensor(images):
    net, loader = net_of(), DataLoader(TensorDataset(images, LABELS), batch_size=10)
    for verb in (
        lambda some: norton.decompose(net, 2, images=some),
        lambda some: norton.prune(net_of_two(), {"0": 0.5}, "hrank", images=some, options=FEW),
        lambda some: reestimate_batchnorm_(net_of(), some),
    ):
        expected, found = verb(images), verb(loader)
        torch.testing.assert_close(found(images), expected(images))
    expected, found = (norton.choose_ranks(net_of_two(), some, macs=0.8) for some in (images, loader))
    assert found.ranks == expected.ranks
    errors = norton.decomposition.output_errors(net, norton.decompose(net, 2), loader)
    assert errors == pytest.approx(norton.decomposition.output_errors(net, norton.decompose(net, 2), images))


FEW = norton.PruneOptions(min_filters=1)


def net_of_two():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten()
    net = nn.Sequential(*layers, nn.Linear(64, 4)).eval()
    net.input_size = (3, 6, 6)
    return net


def test_a_criterion_finds_its_labels_in_the_batches(images):
    by_hand = norton.prune(net_of_two(), {"0": 0.5}, "taylor", images=images, labels=LABELS, options=FEW)
    loader = DataLoader(TensorDataset(images, LABELS), batch_size=4)
    found = norton.prune(net_of_two(), {"0": 0.5}, "taylor", images=loader, options=FEW)
    torch.testing.assert_close(found(images), by_hand(images))


def test_images_alone_decide_what_is_fitted(images):
    """By default the outputs count where there are images; `weights` and None ask for the weights by name."""
    net = net_of_two()
    by_weights, by_outputs = (norton.decompose(net, 2, objective=how, images=images) for how in ("weights", "outputs"))
    apart = (by_weights(images) - by_outputs(images)).abs().max()
    assert apart > 1e-3
    torch.testing.assert_close(norton.decompose(net, 2, images=images)(images), by_outputs(images))
    torch.testing.assert_close(norton.decompose(net, 2)(images), by_weights(images))
    cut, fitted = (
        norton.prune(net, {"0": 0.5}, "l2", images=images, options=norton.PruneOptions(min_filters=1, compensate=how))
        for how in (None, "outputs")
    )
    assert (cut(images) - fitted(images)).abs().max() > 1e-3
    torch.testing.assert_close(norton.prune(net, {"0": 0.5}, "l2", images=images, options=FEW)(images), fitted(images))
    torch.testing.assert_close(norton.prune(net, {"0": 0.5}, "l2", options=FEW)(images), cut(images))


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, number):
        raise OSError("disk on fire")


class Endless(torch.utils.data.Dataset):
    def __getitem__(self, number):
        return torch.zeros(3, 6, 6)


@pytest.mark.parametrize("images, said", [
    ([(Image.new("RGB", (6, 6)), 0)] * 4, "PIL"),
    (Broken(), "disk on fire"),
    (Endless(), "len"),
])  # fmt: skip
def test_datasets_that_cannot_be_read(images, said):
    if isinstance(images, list):
        images = DataLoader(images, batch_size=2)
    with pytest.raises(
        norton.InputError, match=rf"{type(images).__name__} cannot be read \(.*{said}.*must give tensors"
    ):
        read_images(net_of(), images)


def test_images_and_their_classes_one_hot_are_one_batch(images):
    with pytest.raises(norton.InputError, match="are one batch with its labels"):
        read_images(net_of(), [images, torch.eye(10)])
