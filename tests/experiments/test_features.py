"""Grad-CAM against the definition, and `python -m experiments.features`."""

import json
import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.commands import run_here
from helpers.networks import randomise_
from helpers.repository import REPOSITORY
from omegaconf import OmegaConf
from PIL import Image

import norton
from experiments.features import open_networks
from norton.data.splits import generator, load_data
from norton.measure.gradcam import explainable, explained_layer, grad_cam, map_correlation

DENSE = REPOSITORY / "checkpoints/resnet_56_clutter.pt"
COMPRESSED = REPOSITORY / "checkpoints/resnet_56_clutter_rank3.pt"


def literal_grad_cam(net, layer, image, asked):
    """Selvaraju et al. 2017 for one image (3, H, W), as written there: α = mean of ∂y/∂A, map = ReLU(Σ α A)."""
    seen = []

    def keep(module, inputs, output):
        seen.append(output)
        return output.clone()  # a ReLU in place overwrites the copy

    handle = net.get_submodule(layer).register_forward_hook(keep)
    logits = net(image[None])
    handle.remove()
    (activation,) = seen
    (gradient,) = torch.autograd.grad(logits[0, asked], activation)
    rows, columns = activation.shape[-2:]
    heat = torch.zeros(rows, columns, dtype=image.dtype)
    for channel in range(activation.shape[1]):
        heat += gradient[0, channel].sum() / (rows * columns) * activation[0, channel].detach()
    heat = heat.clamp_min(0)
    return F.interpolate(heat[None, None], image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


CASES = [
    ("resnet_56", None, "layer3"),
    ("resnet_56", "layer2.4.bn1", "layer2.4.bn1"),  # a ReLU in place follows
    ("vgg_16_bn", None, "features"),
    ("densenet_40", None, "relu"),
    ("resnet_50", None, "layer4"),
]


@pytest.mark.parametrize("arch, asked, layer", CASES)
def test_grad_cam_is_that_of_the_paper(arch, asked, layer, images):
    size = 64 if arch == "resnet_50" else 32
    batch, classes = images(size)[:2].double(), torch.tensor([3, 7])
    for net in (randomise_(norton.build(arch)), randomise_(norton.build(arch, rank=2), seed=1)):
        assert explained_layer(net, asked) == layer
        net.double()
        maps = grad_cam(explainable(net), layer, batch, classes)
        expected = torch.stack([literal_grad_cam(net, layer, *pair) for pair in zip(batch, classes, strict=True)])
        assert maps.shape == (2, size, size)
        assert expected.amax() > 0
        torch.testing.assert_close(maps, expected, rtol=1e-6, atol=1e-6 * expected.amax().item())
        assert not any(parameter.grad is not None for parameter in net.parameters())


def test_correlation():
    maps = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    other = maps.flip(0)
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(maps, other, strict=True)]
    assert map_correlation(maps, other).tolist() == pytest.approx(expected)
    assert map_correlation(maps, 3 * maps + 1).tolist() == pytest.approx([1.0] * 3)
    assert map_correlation(maps, -maps).tolist() == pytest.approx([-1.0] * 3)


def test_a_constant_map_has_no_correlation():
    maps = torch.rand(2, 8, 8)
    for constant in (torch.zeros(8, 8), torch.full((8, 8), 0.1)):
        found = map_correlation(torch.stack([constant, maps[1]]), maps)
        assert found[0].isnan()
        assert found[1] == pytest.approx(1.0)


@pytest.mark.parametrize("layer, message", [
    ("nosuch", "has no layer 'nosuch'"),
    ("fc", r"layer fc gives \(10,\), no map"),
    ("avgpool", "no map"),
])  # fmt: skip
def test_layers_without_a_map_are_refused(layer, message):
    with pytest.raises(norton.InputError, match=message):
        explained_layer(norton.load(DENSE), layer)


# The program


@pytest.fixture
def features(monkeypatch, capsys):
    def start(*arguments):
        return run_here(shlex.join(["python", "-m", "experiments.features", *arguments]), monkeypatch, capsys)

    return start


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


RESULTS = {"config.yaml", "metrics.json", "table.md", "features.png"}


@pytest.fixture
def other(tmp_path):
    """A compressed network that often names another class than the dense one, and so must be told which to explain."""
    net = norton.load(COMPRESSED)
    with torch.no_grad():
        net.fc.weight += 0.4 * torch.randn(net.fc.weight.shape, generator=torch.Generator().manual_seed(0))
    return norton.save(net, tmp_path / "other.pt")


def test_the_program(other, features, tmp_path):
    """Its mean correlation is that of literal maps of the same images; a network beside itself has 1."""
    given, out = f"compressed=[{other},{DENSE}]", tmp_path / "out"
    code, _, error = features(given, "images=2", "statistics_images=8", "batch_size=3", "seed=5", f"out={out}")
    assert code == 0, error[-2000:]
    assert {path.name for path in out.iterdir()} == RESULTS
    metrics = read(out)
    assert len({row["image"] for row in metrics["shown"]}) == 2
    test = load_data("clutter").test
    drawn = torch.randperm(len(test), generator=generator(5))[:8]
    dense, small = norton.load(DENSE), norton.load(other)
    found, same = [], []
    for image in (test[int(index)][0] for index in drawn):
        asked, named = (int(net(image[None]).argmax()) for net in (dense, small))
        one, two = (literal_grad_cam(net, "layer3", image, asked).flatten() for net in (dense, small))
        if two.amax() > 0:
            found.append(np.corrcoef(one, two)[0, 1])
        same.append(asked == named)
    assert 0 < sum(same) < 8
    result = metrics["networks"]["other"]
    assert result["mean_correlation"] == pytest.approx(np.mean(found), abs=1e-3)
    assert result["std_correlation"] == pytest.approx(np.std(found, ddof=1), abs=1e-3)
    assert result["agreement_percent"] == 100 * np.mean(same)
    assert (result["images"], result["images_without_map"]) == (8, 8 - len(found))
    assert result["macs_removed_percent"] == pytest.approx(70.21, abs=0.01)
    itself = metrics["networks"][DENSE.stem]
    assert (itself["mean_correlation"], itself["agreement_percent"]) == (pytest.approx(1.0), 100)
    assert metrics["chance"]["images"] == 7
    assert metrics["chance"]["mean_correlation"] < 0.9


def test_files_of_one_name_are_told_apart_and_the_dense_network_is_dense(other, tmp_path):
    small = norton.load(other)
    files = [str(norton.save(small, tmp_path / run / "model.pt")) for run in ("half", "third")]
    settings = {"checkpoint": str(DENSE), "compressed": files, "model": {"arch": None}, "strict": False}
    cfg = OmegaConf.create(settings | {"rank": None, "compress_rate": None})
    assert list(open_networks(norton.load(DENSE), cfg)) == ["dense", "half", "third"]


def test_own_images_need_no_data(features, tmp_path):
    """A large picture of a test image is that image again; other files in the folder are left alone."""
    data = load_data("clutter").test
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("no image")
    pixels = data.images[0].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
    Image.fromarray(pixels).save(tmp_path / "mine" / "a.png")
    Image.fromarray(pixels[:, :60]).save(tmp_path / "mine" / "b.JPG")
    code, _, error = features(f"images={tmp_path}/mine", "statistics_images=0", f"out={tmp_path}/out")
    assert code == 0, error[-2000:]
    metrics = read(tmp_path / "out")
    assert [row["image"] for row in metrics["shown"]] == ["a.png", "b.JPG"]
    predicted = norton.load(DENSE)(data[0][0][None]).argmax().item()
    assert metrics["shown"][0]["networks"]["dense"]["predicted"] == str(predicted)
    assert metrics["data"] is None
    assert metrics["networks"]["dense"]["images"] == 2


BAD = [
    ("compressed=[{other}]", "other.pt: is a resnet_110"),
    ("images={other} statistics_images=0", "cannot read"),
    ("images={other} target=true", "the true class of image files is not known"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(arguments, message, features, tmp_path):
    norton.save(norton.build("resnet_110"), tmp_path / "other.pt")
    code, _, error = features(*arguments.format(other=tmp_path / "other.pt").split(), f"out={tmp_path}/out")
    assert code == 2
    assert message in error
    assert [line.startswith("error: ") for line in error.splitlines()] == [True]
    assert not (tmp_path / "out").exists()
