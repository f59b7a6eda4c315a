"""What a network remembers of the data of its steps: which images are new to it is never lost."""

import pytest
import torch
from helpers.own_images import write_classes
from torch import nn

from norton.data.datamodule import ClassificationData
from norton.training import other_test, remember_data_, remember_if_new_


class Net(nn.Module):
    """Of two classes, which remembers nothing yet."""

    num_classes = 2


def data_of(root, name="folder", **options):
    options = {"size": 12, **options} if name == "folder" else options
    data = ClassificationData(name, 4, root=root, **options)
    _ = data.splits
    return data


@pytest.fixture
def images(tmp_path):
    return write_classes(tmp_path / "images", {"blue": 7, "red": 7})


def test_training_on_other_splits_is_remembered_for_good(images):
    """Report: trained with seed 0, then fine-tuned with seed 1, it claimed an accuracy of images that it had seen."""
    zero, one = data_of(images), data_of(images, seed=1)
    net = remember_data_(Net(), zero)
    assert other_test(net, zero) == "" and "data.seed=1, where the file has 0" in other_test(net, one)
    tuned = remember_data_(remember_data_(Net(), zero), one)
    assert tuned.data_settings["seed"] == 1
    for data in (zero, one):
        assert "data.seed=1, where the file has 0" in other_test(tuned, data)
    again = remember_data_(tuned, one)
    assert "data.seed=1, where the file has 0" in other_test(again, one)


def test_other_data_have_test_images_of_their_own(images, tmp_path):
    net = remember_data_(Net(), data_of(images))
    net.data_settings["name"] = "cifar10"
    assert other_test(remember_data_(net, data_of(images, seed=1)), data_of(images, seed=1)) == ""


def test_a_step_that_trains_nothing_fills_in_what_is_not_known(images, tmp_path):
    zero, one = data_of(images), data_of(images, seed=1, mean=0.25, std=0.5)
    fresh = remember_if_new_(Net(), one)
    assert fresh.data_settings["seed"] == 1 and fresh.normalisation == one.normalisation
    known = remember_if_new_(remember_data_(Net(), zero), one)
    assert known.data_settings == zero.settings and known.normalisation == zero.normalisation
    with_mean = Net()
    with_mean.normalisation = ((0.1,) * 3, (0.2,) * 3)
    assert remember_if_new_(with_mean, one).normalisation == ((0.1,) * 3, (0.2,) * 3)
    assert with_mean.data_settings["seed"] == 1


def test_a_folder_that_has_moved_is_remembered_where_it_is(images, tmp_path):
    net, other = remember_data_(Net(), data_of(images)), write_classes(tmp_path / "other", {"blue": 9, "red": 9})
    before = dict(net.data_settings)
    assert remember_if_new_(net, data_of(other)).data_settings == before  # both are there
    moved = images.rename(tmp_path / "moved")
    assert remember_if_new_(net, data_of(other)).data_settings == before  # other images
    assert remember_if_new_(net, data_of(moved)).data_settings == before | {"root": str(moved)}


@pytest.mark.parametrize("name, size", [("mnist5k", 32), ("clutter", 32)])
def test_embedded_data_are_normalised_as_one_says(name, size):
    plain, half = data_of(None, name), data_of(None, name, mean="half")
    assert half.normalisation == ((0.5,) * 3, (0.5,) * 3) == half.told_normalisation
    (own, _), (other, _) = (data.splits.test[3] for data in (plain, half))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in plain.normalisation)
    torch.testing.assert_close(other, (own * std + mean - 0.5) / 0.5, rtol=1e-4, atol=1e-4)
    mean, _ = data_of(None, name, mean="auto", std=0.5).normalisation
    assert mean == pytest.approx(plain.normalisation[0], abs=0.03)
