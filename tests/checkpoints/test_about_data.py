"""Checkpoints remember the data that their network is for, and so does whatever is made of the network."""

import numpy as np
import pytest
import torch
from torch import nn

import norton
from norton.checkpoints.about_data import difference
from norton.checkpoints.files import read
from norton.common.errors import NortonWarning

pytestmark = pytest.mark.quick
SETTINGS = {"name": "folder", "root": "/there", "seed": 3, "size": [8, 8], "augment": "none"}


def small(classes=("blue", "red")):
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(16, len(classes)))
    net.input_size, net.num_classes, net.classes = (3, 8, 8), len(classes), classes
    net.normalisation, net.data_settings = ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2)), SETTINGS
    return net.eval()


def check_remembers(net):
    assert net.classes == ("blue", "red") and net.data_settings == SETTINGS
    assert net.normalisation == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


def saved(net, path):
    with pytest.warns(NortonWarning, match="will need the dense network"):
        return norton.save(net, path)


def test_whatever_is_made_of_a_network_remembers_its_data(tmp_path):
    net = small()
    made = norton.prune(norton.decompose(net, 2, starts=1), 0.3, criterion="l2")
    for one in (made, norton.share_weights(net, 4)):
        check_remembers(one)
    plain = small(("a", "b"))
    del plain.classes, plain.normalisation, plain.data_settings
    check_remembers(norton.load(saved(made, tmp_path / "a.pt"), net=plain))


def test_older_files_say_nothing(tmp_path):
    content = read(saved(small(), tmp_path / "a.pt"))
    for key in ("classes", "data", "normalisation"):
        del content[key]
    torch.save(content, tmp_path / "b.pt")
    plain = small()
    del plain.classes, plain.normalisation, plain.data_settings
    net = norton.load(tmp_path / "b.pt", net=plain)
    assert not {"classes", "normalisation", "data_settings"} & set(vars(net))


@pytest.mark.parametrize("classes", [7, "ab", ("a", 1), ("a", "b", "c")])
def test_what_means_something_else_is_no_names_of_classes(classes, tmp_path):
    net = small()
    net.classes = classes
    assert read(saved(net, tmp_path / "a.pt"))["classes"] is None


def test_what_is_written_can_be_read_again(tmp_path):
    net = small()
    net.classes, net.normalisation = np.array(["blue", "red"]).tolist(), (np.ones(3), np.ones(3))
    net.classes[0] = np.str_("blue")
    net.data_settings = SETTINGS | {"augment": torch.relu, "options": {"split": "letters"}}
    content = read(saved(net, tmp_path / "a.pt"))
    assert content["classes"] == ["blue", "red"] and content["normalisation"] == [[1.0] * 3] * 2
    assert content["data"] == {key: SETTINGS[key] for key in ("name", "root", "seed", "size")} | {
        "options": {"split": "letters"}
    }


@pytest.mark.parametrize("change", [{"classes": "ab"}, {"data": ["folder"]}, {"normalisation": 0.5}])
def test_strange_memories_are_refused(change, tmp_path):
    content = read(saved(small(), tmp_path / "a.pt"))
    torch.save({**content, **change}, tmp_path / "b.pt")
    with pytest.raises(norton.InputError, match=f"its {next(iter(change))} are missing or of the wrong type"):
        norton.load(tmp_path / "b.pt", net=small())


@pytest.mark.parametrize("own, others, said", [
    (("a", "b"), ("a", "b"), ""),
    (("a", "b"), ("0", "1"), ""),  # numbers say nothing
    (("0", "1"), ("a", "b"), ""),
    (("a", "b", "c"), ("a", "c", "b"), "have the same classes in another order: number 1 is c, not b"),
    (("a", "b", "c"), ("a", "c"), "lack its b"),
    (("a", "b"), ("a", "b", "c"), "have c besides"),
    (("a", "b"), ("a", "c"), "have c in the place of b"),
    (tuple("abcdefg"), ("0", "x"), "have 0, x in the place of a, b, c, d, e and 2 more"),
])  # fmt: skip
def test_how_classes_differ(own, others, said):
    assert difference(own, others) == said


@pytest.mark.parametrize("value", [["a"], [[0.5], [0.5], [0.5]], [[0.5, 0.5], [0.5]], [["a"], ["b"]]])
def test_a_normalisation_that_is_none_is_refused(value, tmp_path):
    content = read(norton.save(norton.build("resnet_20"), tmp_path / "a.pt")) | {"normalisation": value}
    content.pop("assumed")
    torch.save(content, tmp_path / "b.pt")
    with pytest.raises(norton.InputError, match="its normalisation are missing or of the wrong type"):
        norton.load(tmp_path / "b.pt")
