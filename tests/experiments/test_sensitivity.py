"""`python -m experiments.sensitivity`: each number against the chain of library calls it stands for."""

import csv
import json

import pytest
import torch
from helpers.commands import run_here, written
from helpers.repository import REPOSITORY
from omegaconf import OmegaConf

import norton
from norton.calibration import reestimate_batchnorm_
from norton.data.datamodule import ClassificationData

DENSE = "checkpoints/resnet_56_clutter.pt"
FEW = (
    "layers=[layer1.0.*,layer3.8.conv1] ranks=[1,9] rates=[0.5] images=100 calibration.images=64 device=cpu"
    " calibration.batchnorm=true"
)


@pytest.fixture
def sensitivity(monkeypatch, capsys):
    return lambda words: run_here(f"python -m experiments.sensitivity {words}", monkeypatch, capsys)


@pytest.fixture
def measured(tmp_path, sensitivity):
    code, out, error = sensitivity(f"checkpoint={DENSE} {FEW} out={tmp_path}/a")
    assert code == 0, error
    return tmp_path / "a", out


@torch.no_grad()
def test_numbers_files_and_resuming(measured, sensitivity, monkeypatch):
    folder, out = measured
    assert written(folder) >= {"config.yaml", "metrics.json", "sensitivity.csv", "table.md", "picture.png"}
    metrics = json.loads((folder / "metrics.json").read_text())
    trials = {(one["kind"], one["value"], one["layer"]): one for one in metrics["trials"]}
    blocks = ["layer1.0.conv1", "layer1.0.conv2", "layer3.8.conv1"]
    assert [key for key in trials if key[0] == "rank"] == [("rank", rank, name) for rank in (1, 9) for name in blocks]
    assert ("rate", 0.5, "layer3.8.conv1") in trials

    net = norton.load(REPOSITORY / DENSE)
    data = ClassificationData("clutter", 128)
    images, labels = data.labelled("val", 100)
    whole = net(images)
    assert metrics["dense"]["top1"] == pytest.approx(100 * (whole.argmax(1) == labels).float().mean().item())
    small = {
        ("rank", 1, "layer1.0.conv2"): norton.decompose(net, {"layer1.0.conv2": 1}),
        ("rate", 0.5, "layer3.8.conv1"): norton.prune(
            net, {"layer3.8.conv1": 0.5}, criterion="l2", options=norton.PruneOptions(min_filters=1)
        ),
    }
    for key, other in small.items():
        answers = reestimate_batchnorm_(other, data.calibration_images(64), 128)(images)
        error = ((whole - answers) ** 2).sum() / (whole**2).sum()
        assert trials[key]["output_error"] == pytest.approx(error.item(), rel=1e-3)
        lost = 100 * ((whole.argmax(1) == labels).float().mean() - (answers.argmax(1) == labels).float().mean())
        assert trials[key]["top1_lost"] == pytest.approx(lost.item(), abs=1e-4)
        removed = 100 * (1 - norton.complexity(other).macs / norton.complexity(net).macs)
        assert trials[key]["macs_removed_percent"] == pytest.approx(removed)
    # Full rank changes nothing but BatchNorm's statistics, rank 1 more.
    assert trials["rank", 9, "layer1.0.conv2"]["output_error"] < trials["rank", 1, "layer1.0.conv2"]["output_error"]
    rows = list(csv.DictReader((folder / "sensitivity.csv").open()))
    assert [(row["kind"], row["layer"]) for row in rows] == [(key[0], key[2]) for key in trials]

    head, _, *lines = (folder / "table.md").read_text().splitlines()
    assert head == "| layer | rank 1 | rank 9 | rate 0.5 |"
    assert [line.split(" | ")[0].strip("| ") for line in lines] == blocks
    assert lines[-1].split(" | ")[-1].strip(" |") == f"{trials['rate', 0.5, 'layer3.8.conv1']['top1_lost']:.2f}"

    done = json.loads((folder / "trials.json").read_text())
    marked = done["rank 9 layer1.0.conv1"]["top1"] = -1.0  # what is there is not measured again
    del done["rank 1 layer1.0.conv1"]
    (folder / "trials.json").write_text(json.dumps(done))
    code, out, error = sensitivity(f"checkpoint={DENSE} {FEW} out={folder}")
    assert code == 0, error
    assert f"{len(trials) - 1} of {len(trials)} are measured already" in out
    again = json.loads((folder / "metrics.json").read_text())["trials"]
    assert next(one for one in again if one["kind"] == "rank" and one["value"] == 9)["top1"] == marked
    assert next(one for one in again if one["kind"] == "rank")["top1"] == trials["rank", 1, "layer1.0.conv1"]["top1"]


@pytest.mark.parametrize("words, message", [
    ("ranks=3", "ranks is 3; give a list"),
    ("ranks=[3,3]", "each may stand there once"),
    ("rates=[1.5]", "rates has 1.5"),
    ("ranks=[10]", "rank"),
    ("ranks=null rates=null", "nothing to measure"),
    ("layers=[layer1.0.conv1,nosuch]", "layers: pattern 'nosuch' matches none of the"),
    ("images=0", "images is 0"),
    ("split=train", "split is 'train'"),
    ("pruning=taylor layers=[layer9.*] rates=[0.5] ranks=null", "layers: pattern 'layer9.*' matches none of the"),
])  # fmt: skip
def test_bad_input(words, message, tmp_path, sensitivity):
    code, _, error = sensitivity(f"checkpoint={DENSE} {words} out={tmp_path}/a")
    assert code == 2
    assert message in error
    assert not (tmp_path / "a").exists()


def test_ranks_of_narrow_layers_are_clipped():
    from experiments.sensitivity import Trial, compressed  # not above: the others run the module as a program

    method = {"method": "tucker_filter", "skip": None, "seed": 0, "objective": "weights", "options": {}}
    cfg = OmegaConf.create({"rank": None, "decomposition": method, "calibration": {"batchnorm": False}})
    net = norton.build("resnet_56")
    found = [compressed(net, Trial("rank", 4, layer), cfg, None) for layer in ("conv1", "layer1.0.conv1")]
    assert found[0].conv1.rank == 3 and found[1].layer1[0].conv1.rank == 4
    assert isinstance(found[1].conv1, torch.nn.Conv2d)
