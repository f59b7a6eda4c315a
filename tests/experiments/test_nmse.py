"""`python -m experiments.nmse`: its numbers against the definition, filter by filter."""

import csv
import json
import shlex
from statistics import fmean

import pytest
import torch
from helpers.commands import run_here
from helpers.networks import randomise_

import norton

DENSE = "checkpoints/resnet_56_clutter.pt"
COMPRESSED = "checkpoints/resnet_56_clutter_rank3.pt"
FAST = ("decomposition.options.starts=1", "decomposition.skip=[layer2.*,layer3.*]")


@pytest.fixture
def nmse(monkeypatch, capsys):
    def start(*arguments):
        return run_here(shlex.join(["python", "-m", "experiments.nmse", *arguments]), monkeypatch, capsys)

    return start


def read(folder):
    return json.loads((folder / "metrics.json").read_text())


def literal_nmse(net, small):
    """Layer → mean over its filters that are not zero of ‖W[o] - Ŵ[o]‖² / ‖W[o]‖², one filter after the other."""
    errors = {}
    for name, layer in small.named_modules():
        if not hasattr(layer, "composed_weight"):
            continue
        ratios = []
        for o, filter_ in enumerate(net.get_submodule(name).weight.detach().double()):
            head, body, tail = (factor[:, :, o].detach().double() for factor in layer.factors())
            approximation = torch.zeros_like(filter_)
            for r in range(layer.rank):
                approximation += head[:, r, None, None] * body[None, :, r, None] * tail[None, None, :, r]
            if filter_.norm() > 0:
                ratios.append(((filter_ - approximation).norm() ** 2 / filter_.norm() ** 2).item())
        errors[name] = fmean(ratios)
    return errors


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A dense ResNet-56 with a filter of zeros, which must not count."""
    net = randomise_(norton.build("resnet_56"))
    with torch.no_grad():
        net.layer1[0].conv1.weight[3] = 0
    path = tmp_path_factory.mktemp("dense") / "dense.pt"
    norton.save(net, path)
    return path


def test_at_each_rank_and_of_given_files(dense, nmse, tmp_path):
    code, _, error = nmse(f"checkpoint={dense}", "ranks=[1,3]", "accuracy=false", *FAST, f"out={tmp_path}/a")
    assert code == 0, error[-2000:]
    files = {"config.yaml", "metrics.json", "nmse_by_layer.csv", "table.md", "picture.png"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == files
    metrics = read(tmp_path / "a")
    assert (metrics["arch"], metrics["data"]) == ("resnet_56", None)
    net = norton.load(dense)
    for rank, result in zip([1, 3], metrics["networks"], strict=True):
        small = norton.decompose(net, rank, starts=1, skip=["layer2.*", "layer3.*"])
        expected = literal_nmse(net, small)
        assert result["rank"] == rank
        assert result["nmse_by_layer"] == pytest.approx(expected, rel=1e-4)
        assert result["nmse"] == pytest.approx(fmean(expected.values()), rel=1e-4)
        assert result["macs"] == norton.complexity(small).macs
        assert "top1" not in result
        norton.save(small, tmp_path / f"{rank}" / "model.pt")  # the same name twice, as decompose.py writes it
    one, three = metrics["networks"]
    assert one["nmse"] > three["nmse"] > 0
    assert one["macs_removed_percent"] > three["macs_removed_percent"] > 0
    rows = list(csv.DictReader((tmp_path / "a" / "nmse_by_layer.csv").open()))
    assert {row["layer"]: float(row["rank 3"]) for row in rows} == pytest.approx(three["nmse_by_layer"])

    given = ",".join(f"{tmp_path}/{rank}/model.pt" for rank in (1, 3))
    code, _, error = nmse(f"checkpoint={dense}", f"compressed=[{given}]", "accuracy=false", f"out={tmp_path}/b")
    assert code == 0, error[-2000:]
    for result, expected in zip(read(tmp_path / "b")["networks"], (one, three), strict=True):
        assert result.pop("nmse_by_layer") == pytest.approx(expected.pop("nmse_by_layer"), rel=1e-4)
        assert result == pytest.approx(expected, rel=1e-4)


SMALL = ("data=clutter", "data.copies=[1,1,1]")


def test_accuracy_without_fine_tuning(nmse, tmp_path):
    """Rank 8 leaves the shipped network as it is, to the eye of its accuracy."""
    code, said, error = nmse(f"checkpoint={DENSE}", "ranks=[8]", *SMALL, *FAST, f"out={tmp_path}")
    assert code == 0, error[-2000:]
    metrics = read(tmp_path)
    assert metrics["data"] == "clutter"
    assert metrics["dense_top1"] > 90
    assert metrics["networks"][0]["top1"] == pytest.approx(metrics["dense_top1"], abs=2)
    assert "top-1 % without fine-tuning" in said


BAD = [
    ("checkpoint={dense} ranks=[1,10]", "exceeds 9"),
    ("checkpoint={dense} ranks=[]", "ranks is []"),
    ("checkpoint={dense} rank=2", "give ranks=[...]"),
    ("checkpoint={compressed}", "is decomposed already"),
    ("checkpoint={dense} compressed=[{compressed}]", "resnet_56_clutter_rank3.pt: was pruned"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(arguments, message, nmse, tmp_path):
    arguments = arguments.format(dense=DENSE, compressed=COMPRESSED).split()
    code, _, error = nmse(*arguments, "accuracy=false", f"out={tmp_path}/out")
    assert code == 2
    assert message in error
    assert [line.startswith("error: ") for line in error.splitlines()] == [True]
    assert not (tmp_path / "out").exists()
