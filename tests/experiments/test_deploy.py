"""Deployment: one table from eager to INT8, on a small network; what fails is a row without numbers."""

import json

import pytest
import torch
from helpers.commands import run_here, written
from helpers.networks import randomise_
from helpers.segmentation import WithAuxiliary, seeded
from omegaconf import OmegaConf
from torch import nn

import norton
from experiments.deployment import variants
from experiments.deployment.networks import Given
from experiments.deployment.results import verdicts
from experiments.deployment.variants import BySize, Preparation
from norton.common.errors import InputError
from norton.deployment.exported import Exported
from norton.measure.latency import Latency

MODULE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        stem, conv = nn.Conv2d(3, 16, 3, 2), nn.Conv2d(16, 8, 3, 2)
        layers = [stem, nn.BatchNorm2d(16), nn.ReLU(), conv, nn.BatchNorm2d(8), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
        self.input_size = (3, 32, 32)
"""
FORMS = ["eager", "deployed", "ONNX", "INT8"]
FILES = {"config.yaml", "metrics.json", "table.md", "picture.png"}
OF_A_NETWORK = {"batch1.json", "batch3.json", "pt2", "onnx", "int8.onnx"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A dense network and its compressed version, of a constructor that the command line names."""
    (tmp_path / "tinynet.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    dense = randomise_(norton.build("tinynet.Net"))
    norton.save(dense, tmp_path / "wide.pt", metrics={"data": "mnist5k"})
    small = norton.prune(norton.decompose(dense, 1), {"0": 0.5}, criterion="l2")
    norton.save(small, tmp_path / "small.pt", metrics={"data": "mnist5k"})
    return f"checkpoint={tmp_path}/small.pt model.arch=tinynet.Net"


def run(settings, tmp_path, monkeypatch, capsys, out="out"):
    fast = "compile=false repeats=2 batch_sizes=[1,3] calibration.images=8 trainer.enable_progress_bar=false"
    return run_here(f"python -m experiments.deploy {fast} {settings} out={tmp_path}/{out}", monkeypatch, capsys)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_program(files, tmp_path, monkeypatch, capsys):
    settings = f"{files} dense={tmp_path}/wide.pt data=mnist5k"
    code, out, error = run(settings, tmp_path, monkeypatch, capsys)
    assert code == 0, error
    each = {f"{role}.{ending}" for role in ("dense", "network") for ending in OF_A_NETWORK}
    assert written(tmp_path / "out") == FILES | each
    metrics = metrics_of(tmp_path / "out")
    rows = {(row["network"], row["form"]): row for row in metrics["rows"]}
    assert list(rows) == [(name, form) for name in ("wide", "small") for form in FORMS]
    for (name, form), row in rows.items():
        eager = rows[name, "eager"]
        assert row["top1"] == pytest.approx(eager["top1"], abs=10 if form == "INT8" else 0.11)
        assert (1e-4 < row["difference"] < 0.5) if form == "INT8" else row["difference"] < 1e-4
        for size, found in row["batches"].items():
            dense = rows["wide", form]["batches"][size]
            assert found["speedup"] == pytest.approx(dense["ms"] / found["ms"])
            assert found["quartiles_ms"][0] <= found["ms"] <= found["quartiles_ms"][1]
            assert found["peak_bytes"] is None or found["peak_bytes"] >= 0
    assert rows["wide", "ONNX"]["file_bytes"] == (tmp_path / "out" / "dense.onnx").stat().st_size
    assert metrics["data"] == "mnist5k"
    assert metrics["versions"]["onnxruntime"]
    assert "batch 3: small is fastest as " in out
    assert "ms with the layers' forms from torch" in out or "dense; " in out
    assert "small, INT8: the quantiser lacks, and leaves in float32, 6 (ReduceMean)" in out

    choice = tmp_path / "out" / "network.batch3.json"
    known = json.loads(choice.read_text())
    code, out, error = run(f"{files} accuracy=false int8=false choice={choice}", tmp_path, monkeypatch, capsys, "again")
    assert code == 0, error
    assert json.loads((tmp_path / "again" / "network.batch3.json").read_text()) == known
    names = {row["network"] for row in metrics_of(tmp_path / "again")["rows"]}
    assert names == {"dense, random weights", "small"}
    known["machine"] = "another"
    choice.write_text(json.dumps(known))
    code, _, error = run(f"{files} accuracy=false choice={choice}", tmp_path, monkeypatch, capsys, "third")
    assert code == 2
    assert "the saved choice is of another machine" in error
    assert not (tmp_path / "third").exists()


def test_random_weights_alone(files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(variants, "compiled", lambda net, example: net)  # or it would take minutes
    code, out, error = run("model.arch=tinynet.Net compile=true", tmp_path, monkeypatch, capsys)
    assert code == 0, error
    rows = metrics_of(tmp_path / "out")["rows"]
    forms = ["eager", "deployed", "compiled", "ONNX", "INT8"]
    assert [(row["network"], row["form"], row["top1"]) for row in rows] == [("dense", form, None) for form in forms]
    assert rows[2]["file_bytes"] is None
    assert "INT8 is calibrated on noise" in out


def test_what_fails_is_a_row_without_numbers(files, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise InputError("no such luck")

    for name in ("compiled", "to_program", "to_onnx"):
        monkeypatch.setattr(variants, name, refuse)
    settings = "model.arch=tinynet.Net rank=1 compile=true"
    code, out, error = run(settings, tmp_path, monkeypatch, capsys)
    assert code == 0, error
    rows = {(row["network"], row["form"]): row for row in metrics_of(tmp_path / "out")["rows"]}
    for form in ("compiled", "ONNX", "INT8"):
        assert rows["compressed", form]["batches"] == {"1": None, "3": None}
    assert "compressed, compiled, is left out: no such luck" in out
    assert "compressed, INT8, is left out: it is made from ONNX" in out
    assert "compressed, deployed, has no file: no such luck" in out
    assert rows["compressed", "deployed"]["batches"]["3"]["ms"] > 0


def test_an_occupied_folder_is_refused_before_anything_is_measured(files, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("another: run")
    monkeypatch.setattr(norton, "deploy", None)
    code, _, error = run("model.arch=tinynet.Net", tmp_path, monkeypatch, capsys)
    assert code == 2
    assert "holds a run with other settings" in error
    assert written(tmp_path / "out") == {"config.yaml"}


@pytest.mark.parametrize("best", ["forms", "dense"])
def test_what_the_quantiser_lacks_is_noted_of_the_file_that_is_kept(best, tmp_path, monkeypatch):
    def quantise(file, images, path, **_):
        path.write_bytes(file.stem.encode())
        return Exported(path, 0.0, {f"layer of {file.stem}": "Softplus"})

    def times(nets, *_, **__):
        return {way: Latency(1.0 if way == best else 2.0, "dense", (1.0, 2.0)) for way in nets}

    for name, stub in (("to_int8", quantise), ("latencies", times), ("OnnxNet", lambda file: file.read_bytes())):
        monkeypatch.setattr(variants, name, stub)
    for way in ("forms", "dense"):
        (tmp_path / f"{way}.onnx").touch()
    cfg = OmegaConf.create({"calibration": {"batch_size": 2}, "reduce_range": False, "repeats": 1})
    given, folder, notes = Given("small", nn.ReLU(), False), tmp_path / "out", []
    prepared = Preparation(cfg, "network", given, {}, torch.zeros(1), torch.zeros(1), folder, notes)
    net, path = prepared.int8(tmp_path)
    assert net == path.read_bytes() == best.encode()
    assert path == folder / "network.int8.onnx"
    (note,) = (note for note in notes if "lacks" in note)
    assert note == f"small, INT8: the quantiser lacks, and leaves in float32, layer of {best} (Softplus)"


def test_networks_see_only_the_sizes_they_are_for():
    seen = []

    class Counts(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            seen.append((self.name, len(x)))
            return 2 * x.flatten(1)

    net, images = BySize({4: Counts("large"), 1: Counts("single")}), torch.randn(11, 3, 2, 2)
    for count in (11, 4, 1, 3):
        torch.testing.assert_close(net(images[:count]), 2 * images[:count].flatten(1))
    large = ("large", 4)
    assert seen == [large, large, large, large, ("single", 1), large]


def row(role, form, ms):
    return {"role": role, "network": role, "form": form, "batches": {8: None if ms is None else {"ms": ms}}}


def test_verdicts_compare_with_the_best_dense_row():
    rows = [row("dense", "eager", 9.0), row("dense", "INT8", 2.0), row("network", "eager", 4.0)]
    rows += [row("network", "ONNX", 5.0), row("network", "INT8", None)]
    (line,) = verdicts(rows)
    assert line == (
        "batch 8: network is fastest as eager, 4.00 ms, 0.50 times as fast as the dense network at its best, INT8"
    )


@pytest.mark.parametrize("settings, message", [
    ("", "no network"),
    ("model=resnet_56 batch_sizes=[0]", "batch_sizes is [0]"),
    ("model=resnet_56 repeats=0", "repeats is 0"),
    ("model=resnet_56 compile=1", "compile is 1"),
    ("model=resnet_56 trainer.accelerator=gpu", "trainer.accelerator is 'gpu'; leave it out, all is on the CPU"),
    ("model=resnet_56 dense=some.pt", "dense= is given without a network beside it"),
    ("model=fasterrcnn", "fasterrcnn is a detector; only classifiers are exported"),
    ("model.arch=nonsense", "unknown network 'nonsense'"),
    ("checkpoint=missing.pt", "no checkpoint at missing.pt"),
    ("model=resnet_56 choice=missing.json", "missing.json is no saved deployment"),
    (
        "checkpoint=checkpoints/resnet_56_clutter.pt dense=checkpoints/resnet_56_clutter.pt",
        "the same file is given twice",
    ),
])  # fmt: skip
def test_bad_input(settings, message, tmp_path, monkeypatch, capsys):
    code, _, error = run(settings, tmp_path, monkeypatch, capsys)
    assert code == 2
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out").exists()


def test_batches_of_any_size_through_a_network_that_gives_a_dict():
    net, images = seeded(WithAuxiliary).eval(), torch.randn(5, 3, 16, 16)
    found, expected = BySize({2: net})(images), net(images)
    torch.testing.assert_close(found, expected)
