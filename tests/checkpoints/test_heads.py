"""Another number of classes: the classifier alone is drawn anew, that is said, and what was claimed is forgotten."""

import copy
import warnings

import pytest
import torch
from helpers.networks import randomise_
from torch import nn

import norton
from norton.checkpoints.heads import with_other_head

OWN = """
from torch import nn

def small(num_classes=10):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(8, num_classes))
    net.input_size = (3, 8, 8)
    return net
"""


@pytest.fixture(scope="module")
def net():
    net = randomise_(norton.prune(norton.build("resnet_20", 1, num_classes=5), 0.8, criterion="l2")).eval()
    net.classes, net.normalisation = tuple("abcde"), ((0.5,) * 3, (0.25,) * 3)
    net.data_settings = {"name": "folder", "root": "/there", "seed": 0}
    return net


def loaded(path, **told):
    """What is loaded, and what is said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = norton.load(path, **told)
    return found, "\n".join(str(one.message) for one in said)


def check_kept(found, net, head="fc"):
    """All weights but the classifier's, which are new and finite."""
    state = net.state_dict()
    for key, value in found.state_dict().items():
        if key.startswith(head):
            assert value.shape != state[key].shape and value.isfinite().all() and value.std() > 0, key
        else:
            assert torch.equal(value, state[key]), key


def test_an_own_file(net, tmp_path):
    path = norton.save(net, tmp_path / "a.pt")
    found, said = loaded(path, num_classes=3)
    check_kept(found, net)
    assert said == f"{path}: its classifier fc of 5 classes is replaced by a fresh one of 3"
    assert (found.num_classes, found.classes, found.data_settings) == (3, None, None)
    assert found.normalisation == net.normalisation and found.plan == net.plan
    again = norton.load(norton.save(found, tmp_path / "b.pt"))
    assert torch.equal(again.fc.weight, found.fc.weight) and not hasattr(again, "classes")
    found, said = loaded(path, num_classes=5)
    assert said == "" and torch.equal(found.fc.weight, net.fc.weight) and found.classes == net.classes
    with pytest.raises(norton.InputError, match="refused, because strict: its classifier fc of 5 classes is replaced"):
        norton.load(path, num_classes=3, strict=True)


def test_a_file_from_elsewhere_in_half_precision(net, tmp_path):
    state = copy.deepcopy(net).half().state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / "a.pth")
    found, said = loaded(tmp_path / "a.pth", num_classes=12)
    assert "module. is left out of its names" in said and "fc of 5 classes is replaced by a fresh one of 12" in said
    assert found.fc.weight.shape[0] == found(torch.randn(1, 3, 32, 32)).shape[1] == found.num_classes == 12
    assert {p.dtype for p in found.parameters()} == {torch.float32}
    half = copy.deepcopy(net).half()
    check_kept(loaded(norton.save(half, tmp_path / "b.pt"), num_classes=3)[0], half)


def test_a_constructor_and_a_network_given(tmp_path, monkeypatch):
    (tmp_path / "nets_with_heads.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    net = randomise_(norton.build("nets_with_heads.small", num_classes=7)).eval()
    torch.save(net.state_dict(), tmp_path / "a.pth")
    for path in (tmp_path / "a.pth", norton.save(net, tmp_path / "b.pt")):
        found, said = loaded(path, arch="nets_with_heads.small", num_classes=3)
        check_kept(found, net, "5.")
        assert "5 of 7 classes is replaced by a fresh one of 3" in said
    given = norton.build("nets_with_heads.small", num_classes=4)
    found, _ = loaded(tmp_path / "a.pth", net=given, num_classes=4)
    assert torch.equal(found[5].weight, given[5].weight)  # its own
    with pytest.raises(norton.InputError, match=r"classifier 5 tells 7 classes apart, .* 4; num_classes=4 replaces"):
        norton.load(tmp_path / "a.pth", net=given)  # nobody asked for it


def test_as_many_classes_but_others(net):
    found, said = with_other_head(net)
    assert said == "its classifier fc is replaced by a fresh one for other classes"
    assert found.classes is None and net.classes == tuple("abcde")
    different = [key for key, value in found.state_dict().items() if not torch.equal(value, net.state_dict()[key])]
    assert different == ["fc.weight", "fc.bias"] and isinstance(found.fc, nn.Linear)


def test_a_net_of_the_files_size_asked_for_another_number_is_refused(tmp_path):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 7))
    torch.save(net.state_dict(), tmp_path / "seven.pt")
    with pytest.raises(norton.InputError, match=r"num_classes=3 replaces nothing: .*; give a net of 3"):
        norton.load(tmp_path / "seven.pt", net=net, num_classes=3)
