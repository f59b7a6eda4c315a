"""What settings name is what is opened: data that suit the network, and a checkpoint as `model.` says it is."""

import json

import pytest
import torch
from helpers.commands import run_here
from omegaconf import OmegaConf
from torch import nn

import norton
from norton.checkpoints.files import read
from norton.cli import opening, steps
from norton.cli.program import joined
from norton.common.errors import NortonWarning

NETWORK = """
from torch import nn

def small(num_classes=10):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A plain state_dict of a network of the user's own."""
    (tmp_path / "own_nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(norton.build("own_nets.small").state_dict(), tmp_path / "file.pt")
    return tmp_path / "file.pt"


def auto_data(**settings):
    auto = dict.fromkeys(("root", "batch_size", "num_workers", "seed")) | {"name": "auto"}
    return OmegaConf.create({"checkpoint": "file.pt", "data": auto} | settings)


def test_data_are_those_that_the_accuracy_is_about(file):
    for metrics, name in (({"data": "mnist5k"}, "mnist5k"), ({}, "cifar10")):
        cfg = auto_data()
        assert opening.data_for(norton.build("resnet_56"), {"metrics": metrics}, cfg).name == cfg.data.name == name
    nothing = {"metrics": {}}
    assert opening.data_for(norton.build("resnet_56"), nothing, auto_data(checkpoint=None)) is None
    assert opening.data_for(norton.build("own_nets.small"), nothing, auto_data()) is None


@pytest.mark.parametrize("settings, message", [
    ("calibration.batchnorm=true", "nothing says which data the network was trained on"),
    ("decomposition.objective=outputs calibration.batchnorm=false", "nothing says which data the network was trained"),
    ("data=mnist5k model.input_size=[3,24,24]", "the network takes images of 24×24 pixels, the data mnist5k have"),
    ("data=imagenet data.root={tmp}", "imagenet: looked for"),
    ("model.num_classes=5", "its network tells 10 classes apart, not model.num_classes=5"),
    ("model.compress_rate=0.5", "model.compress_rate is for a new network"),
])  # fmt: skip
def test_what_does_not_suit_the_checkpoint_is_one_line(settings, message, file, tmp_path, monkeypatch, capsys):
    settings = settings.replace("{tmp}", str(tmp_path))
    command = f"python decompose.py checkpoint={file} model.arch=own_nets.small rank=1 {settings} out={tmp_path}/out"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 2 and message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    if "objective" not in settings and not settings.startswith("model"):
        assert "calibration.batchnorm=false" in error  # the way out


def test_without_images_batchnorm_is_left_and_that_is_said():
    cfg = OmegaConf.create({"checkpoint": "a.pt", "calibration": {"batchnorm": "auto", "folder": None, "images": 8}})
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.warns(NortonWarning, match="BatchNorm is left as it is: no images to judge by; name some with data="):
        assert steps.calibrate_(net, net, cfg, None) is None


def test_settings_of_the_model_are_used_and_the_next_command_repeats_the_data(file, tmp_path, monkeypatch, capsys):
    command = (
        f"python decompose.py checkpoint={file} model.arch=own_nets.small rank={{0: 1, 3: 2}} "
        "model.input_size=[3,32,32] data=mnist5k data.batch_size=64 calibration.images=20"
    )
    code, said, error = run_here(f"{command} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 0, error
    content = read(tmp_path / "out" / "model.pt")
    assert content["input_size"] == [3, 32, 32]
    net = norton.load(tmp_path / "out" / "model.pt", arch="own_nets.small")
    counted = json.loads((tmp_path / "out" / "metrics.json").read_text())["macs"]
    assert counted == norton.complexity(net, (3, 32, 32)).macs < norton.complexity(net, (3, 224, 224)).macs
    assert f"checkpoint={tmp_path}/out/model.pt model.arch=own_nets.small data=mnist5k data.batch_size=64\n" in said


def test_the_chain_of_a_plain_state_dict_is_run_to_its_end(file, tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.pipeline checkpoint={file} model.arch=own_nets.small model.input_size=[3,32,32] "
        "data=mnist5k steps=[decompose] rank=1 calibration.images=20 latency=eager latency_batch=2 logger=none"
    )
    code, said, error = run_here(f"{command} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 0, error
    assert "final checkpoint" in said


def test_blanks_in_a_mapping_do_not_end_it():
    cut = ["checkpoint=a b.pt", "rank={layer1.*:", "3,", "layer2.*:", "2}", "out=x"]
    assert joined(cut) == ["checkpoint=a b.pt", "rank={layer1.*: 3, layer2.*: 2}", "out=x"]
    assert joined(["-m", "rank={a: 1}", "seed=1"]) == ["-m", "rank={a: 1}", "seed=1"]
