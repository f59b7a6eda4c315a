"""Weights that others publish: from torchvision's cache, where a test has put some of its own, and from files."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from helpers.networks import randomise_
from torchvision import models

import norton
from norton.checkpoints import pretrained
from norton.common.errors import NortonWarning

ARCH = "torchvision.models.squeezenet1_1"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torchvision's cache with weights for a SqueezeNet, and no network."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    (tmp_path / "checkpoints").mkdir()
    net = randomise_(models.squeezenet1_1()).eval()
    name = Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    torch.save(net.state_dict(), tmp_path / "checkpoints" / name)
    monkeypatch.setattr(pretrained, "check_published", lambda path, weights: None)  # they are no published ones
    return net


def refuse(*args, **kwargs):
    raise URLError("no network here")


def check_same(one, other):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(one(x), other(x))


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_torchvision(weights, cache, tmp_path):
    net = norton.pretrained(ARCH, weights)
    check_same(net, cache)
    assert (net.num_classes, net.input_size) == (1000, (3, 224, 224))
    assert net.normalisation == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    check_same(norton.load(norton.save(norton.prune(net, 0.0), tmp_path / "a.pt")), cache)  # rebuilds itself


def test_a_new_number_of_classes_replaces_the_classifier(cache):
    with pytest.warns(NortonWarning, match=r"classifier.1 of 1000 classes is replaced by a fresh one of 7"):
        net = norton.pretrained(ARCH, num_classes=7)
    assert net.num_classes == 7
    assert torch.equal(net.features[3].squeeze.weight, cache.features[3].squeeze.weight)


def test_what_is_not_there_is_named_with_its_place(cache, tmp_path):
    with pytest.raises(
        norton.InputError, match=rf"looked for {tmp_path}/checkpoints/squeezenet1_0-\w+.pth, .*no network"
    ):
        norton.pretrained("torchvision.models.squeezenet1_0")
    with pytest.raises(norton.InputError, match="torchvision has DEFAULT, IMAGENET1K_V1; or give a file"):
        norton.pretrained(ARCH, "IMAGENET1K_V9")
    with pytest.raises(norton.InputError, match="nothing publishes weights of resnet_56 by name"):
        norton.pretrained("resnet_56")


def test_files(cache, tmp_path):
    path = tmp_path / "mine.pth"
    torch.save({"model": {f"module.{key}": value for key, value in cache.state_dict().items()}}, path)
    with pytest.warns(NortonWarning, match=r"its weights are those under model; module\. is left out of its names"):
        check_same(norton.pretrained(ARCH, path), cache)
    with pytest.raises(norton.InputError, match="no checkpoint at"):
        norton.pretrained(ARCH, tmp_path / "none.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(norton.InputError, match="names do not match"):
        norton.pretrained(ARCH, path)


def test_other_shapes_are_no_other_classes(cache, tmp_path):
    state = cache.state_dict() | {"features.0.weight": torch.zeros(64, 3, 5, 5)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(norton.InputError, match=r"features.0.weight is \(64, 3, 5, 5\) in the file"):
        norton.pretrained(ARCH, tmp_path / "a.pth", num_classes=7)


@pytest.mark.parametrize("content", ["other", "garbage", "", "cut"])
def test_what_lies_in_the_cache_is_checked(content, tmp_path, monkeypatch):
    """Report: torch takes whatever has the name of the weights."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / Path(models.SqueezeNet1_1_Weights.DEFAULT.url).name
    path.write_text(content)
    if content in ("other", "cut"):
        torch.save(models.squeezenet1_1().state_dict(), path)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(norton.InputError, match=rf"{path} is damaged or another file: its checksum is .*; remove it"):
        norton.pretrained(ARCH)


def test_a_whole_file_passes(tmp_path):
    content = b"whatever"
    digest = hashlib.sha256(content).hexdigest()
    for name in (f"net-{digest[:8]}.pth", "net.pth"):
        (tmp_path / name).write_bytes(content)
        pretrained.check_published(tmp_path / name, "DEFAULT")
    pretrained.check_published(tmp_path / "none-01234567.pth", "DEFAULT")
