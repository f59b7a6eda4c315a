"""`python -m experiments.storage`: its files are what its table says, and load as any other checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import run_here, written
from helpers.networks import randomise_
from helpers.repository import REPOSITORY

import norton
from norton.checkpoints.files import read

SMALL = "checkpoints/resnet_56_clutter_rank1.pt"
DATA = "data=clutter data.copies=[1,1,1]"


def storage(arguments, monkeypatch, capsys):
    return run_here(f"python -m experiments.storage {arguments}", monkeypatch, capsys)


def test_sizes_and_accuracies(tmp_path, monkeypatch, capsys):
    a = tmp_path / "a"
    command = f"checkpoint={SMALL} bits=[8,2] {DATA} calibration.images=64 out={a}"
    code, said, error = storage(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert written(a) == {
        *("config.yaml", "metrics.json", "table.md", "picture.png"),
        *("lossless.pt", "bits_8.pt", "bits_2.pt"),
    }
    metrics = json.loads((a / "metrics.json").read_text())
    assert [metrics["files"][name]["bytes"] for name in ("lossless", "bits_8", "bits_2")] == [
        (a / f"{name}.pt").stat().st_size for name in ("lossless", "bits_8", "bits_2")
    ]
    given = Path(REPOSITORY / SMALL).stat().st_size
    assert metrics["plain_bytes"]["as given"] == pytest.approx(given, rel=0.001)
    dense = norton.save(norton.build("resnet_56"), tmp_path / "dense.pt").stat().st_size
    assert metrics["plain_bytes"]["dense"] == pytest.approx(dense, rel=0.001)
    assert metrics["files"]["lossless"]["top1"] == metrics["top1"] > 80
    assert metrics["files"]["bits_8"]["top1"] == pytest.approx(metrics["top1"], abs=2)
    assert metrics["files"]["bits_2"]["error"] > metrics["files"]["bits_8"]["error"] > 0
    table = (a / "table.md").read_text()
    size = metrics["files"]["bits_8"]["bytes"]
    assert f"| 8 bits | {size:,} | {metrics['plain_bytes']['dense'] / size:.2f} |" in table

    net, shared = norton.load(REPOSITORY / SMALL), norton.load(a / "bits_2.pt")
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in norton.load(a / "lossless.pt").state_dict().items())
    assert torch.equal(shared.fc.weight, norton.share_weights(net, 2).fc.weight)
    assert not torch.equal(shared.bn1.running_mean, net.bn1.running_mean)  # re-estimated
    content = read(a / "bits_2.pt")
    assert (content["lineage"][-1]["step"], content["lineage"][-1]["bits"]) == ("share", 2)
    assert content["lineage"][:-1] == read(REPOSITORY / SMALL)["lineage"] == read(a / "lossless.pt")["lineage"]

    command = f"python evaluate.py checkpoint={a}/bits_8.pt {DATA} latency=eager latency_batch=1 out={tmp_path}/b"
    code, said, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert "the claim holds" in said
    assert "clutter, test" in said


def test_patterns_without_data(tmp_path, monkeypatch, capsys):
    net = randomise_(norton.build("resnet_56", 1, "[0.5]*30")).half()
    norton.save(net, tmp_path / "half.pt")
    patterns = "{conv1: 8, fc: null, layer1.*: 2}"
    apart = f"accuracy=false calibration.batchnorm=false data=cifar10 data.root={tmp_path}"
    code, said, error = storage(
        f"checkpoint={tmp_path}/half.pt 'bits={patterns}' {apart} out={tmp_path}/a", monkeypatch, capsys
    )
    assert code == 0, error[-2000:]
    assert "conv1: 8, fc: None, layer1.*: 2" in said
    small = norton.load(tmp_path / "a" / "patterns_1.pt")
    expected = norton.share_weights(net, {"conv1": 8, "fc": None, "layer1.*": 2})
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in small.state_dict().items())
    assert small.fc.weight.dtype == torch.float16
    assert "top1" not in json.loads((tmp_path / "a" / "metrics.json").read_text())["files"]["patterns_1"]
    assert "top-1" not in (tmp_path / "a" / "table.md").read_text()


def test_an_occupied_folder_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("another: run")
    monkeypatch.setattr("norton.cli.steps.evaluate", None)
    code, _, error = storage(f"checkpoint={SMALL} {DATA} out={tmp_path}", monkeypatch, capsys)
    assert code == 2
    assert "holds a run with other settings" in error
    assert written(tmp_path) == {"config.yaml"}


def test_the_same_command_is_no_other_run(tmp_path, monkeypatch, capsys):
    """Its config names the data that were chosen, in the place of `auto`."""
    monkeypatch.setattr(
        "norton.cli.steps.calibrate_", lambda net, *_: net
    )  # for which data are chosen, and not read here
    for _ in range(2):
        code, _, error = storage(f"checkpoint={SMALL} accuracy=false bits=2 out={tmp_path}/a", monkeypatch, capsys)
        assert code == 0, error[-2000:]
    assert "name: clutter" in (tmp_path / "a" / "config.yaml").read_text()


MODULE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        super().__init__(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 9 * 9, num_classes))
"""


def test_a_network_of_images_of_an_unusual_size(tmp_path, monkeypatch, capsys):
    (tmp_path / "sized11.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    net = randomise_(norton.build("sized11.Net", input_size=(3, 11, 11)))
    norton.save(net, tmp_path / "net.pt")
    apart = "model.arch=sized11.Net accuracy=false calibration.batchnorm=false bits=2"
    code, _, error = storage(f"checkpoint={tmp_path}/net.pt {apart} out={tmp_path}/a", monkeypatch, capsys)
    assert code == 0, error[-2000:]
    plain = json.loads((tmp_path / "a" / "metrics.json").read_text())["plain_bytes"]
    assert plain["dense"] == pytest.approx(plain["as given"], rel=0.01)


BAD = [
    ("", "no network"),
    ("checkpoint={file} bits=9", "bits are 9 for '*'; choose 1 to 8"),
    ("checkpoint={file} bits=[5,0]", "bits are 0"),
    ("checkpoint={file} bits=[5,4,5]", "none of them twice"),
    ("checkpoint={file} bits=[]", "at least one"),
    ("checkpoint={file} 'bits={{}}'", "bits={} shares the weights of no layer"),
    ("checkpoint={file} 'bits=[5,{{conv1: null}}]'", "bits={'conv1': None} shares the weights of no layer"),
    ("checkpoint={file} bits=many", "bits are 'many'"),
    ("checkpoint={file} 'bits={{layr1.*: 5}}'", "pattern 'layr1.*' matches none of the 56 layers"),
    ("checkpoint={file} accuracy=3", "accuracy is 3"),
    ("checkpoint={file} data=cifar10 data.root={tmp}", "cifar"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    arguments = arguments.format(file=SMALL, tmp=tmp_path)
    code, _, error = storage(f"{arguments} out={tmp_path}/out", monkeypatch, capsys)
    assert code == 2
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "out").exists()
