"""Throughput: what is measured, at which boxes, and what is said of it."""

import json

import pytest
import torch
from helpers.commands import run_here, written
from omegaconf import OmegaConf

import norton
from detection import build_detector, detector_complexity
from detection.counting import boxes_looked_at
from experiments.throughput import measure, pictures, prepared, verdicts

RATES = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


def point(network, batch, speedup, ratio=2.0, size=32):
    return {"network": network, "size": size, "batch": batch, "macs_ratio": ratio, "speedup": speedup}


def test_verdicts_name_every_batch_that_is_not_faster():
    points = [point("dense", b, 1.0, 1.0) for b in (1, 8)] + [point("small", 1, 0.8), point("small", 8, 1.2)]
    (line,) = verdicts(points)
    assert line.startswith("small, 32×32: 2.00 times fewer MACs; times as fast: 0.80 at batch 1, 1.20 at batch 8")
    assert line.endswith("Fewer MACs are NOT faster here at batch 1")
    (line,) = verdicts([point("dense", 1, 1.0, 1.0), point("small", 1, 1.01)])
    assert "NOT" not in line


def test_measure_compares_with_the_first():
    nets = {"dense": norton.build("resnet_56"), "small": norton.build("resnet_56", 1, "[0.]+[0.4]*29")}
    dense, small = measure(nets, pictures(False, 32, 2, 0), repeats=1)
    assert (dense["batch"], dense["size"], dense["speedup"], dense["macs_ratio"]) == (2, 32, 1.0, 1.0)
    assert dense["macs"] == 127087242
    assert small["macs_ratio"] == pytest.approx(dense["macs"] / small["macs"])
    assert small["speedup"] == pytest.approx(dense["ms"] / small["ms"])
    assert small["images_per_second"] == pytest.approx(2000 / small["ms"])
    assert dense["form"] in ("dense, channels-last", "dense, contiguous")
    assert small["form"].endswith((", channels-last", ", contiguous"))
    assert dense["peak_bytes"] > 2 * 4 * 16 * 32 * 32  # the first convolution's output alone

    eager = measure(nets, pictures(False, 32, 2, 0), repeats=1, mode="eager")
    assert eager[0]["form"] == "dense" and eager[1]["form"] in ("factored", "grouped", "composed")
    assert [point["macs"] for point in eager] == [dense["macs"], small["macs"]]


@pytest.mark.parametrize("rank", [0, 1])
def test_random_detectors_look_at_the_stated_boxes(rank):
    torch.manual_seed(0)
    net = build_detector("maskrcnn", norton.build("resnet_50", rank), 11).eval()
    cfg = OmegaConf.create({"model": {"arch": "maskrcnn"}, "proposals": 40, "detections": 3})
    fixed = prepared(net, 96, cfg)
    work = boxes_looked_at(fixed, pictures(True, 96, 2, 0))
    assert work == {"size": (96, 96), "proposals": 40, "detections": 3}
    assert net.transform.min_size == (800,)  # untouched
    cost = detector_complexity(fixed, **work)
    assert cost.by_part["mask head"] > 0


def test_files_decide_themselves_how_many_boxes_they_look_at():
    torch.manual_seed(0)
    net = build_detector("fasterrcnn", norton.build("resnet_50", 1, RATES), 11, rpn_post_nms_top_n_test=7).eval()
    cfg = OmegaConf.create({"model": {"arch": None}, "proposals": None, "detections": None})
    assert boxes_looked_at(prepared(net, 64, cfg), pictures(True, 64, 1, 0))["proposals"] <= 7


def test_program(tmp_path, monkeypatch, capsys):
    small = "checkpoints/resnet_56_clutter_rank1.pt"
    command = f"python -m experiments.throughput compressed={small} batch_sizes=[1,2] repeats=2 out={tmp_path}/a"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error
    assert "resnet_56_clutter_rank1, 32×32: 13.86 times fewer MACs; times as fast: " in out
    assert written(tmp_path / "a") == {"config.yaml", "metrics.json", "table.md", "picture.png"}
    points = json.loads((tmp_path / "a" / "metrics.json").read_text())["points"]
    assert [(p["network"], p["batch"]) for p in points] == [
        (name, batch) for batch in (1, 2) for name in ("resnet_56_clutter", "resnet_56_clutter_rank1")
    ]


def test_program_on_detectors(tmp_path, monkeypatch, capsys):
    settings = f"model=fasterrcnn rank=1 compress_rate={RATES} image_sizes=[64] batch_sizes=[1] proposals=9 repeats=1"
    code, _, error = run_here(f"python -m experiments.throughput {settings} out={tmp_path}/a", monkeypatch, capsys)
    assert code == 0, error
    points = json.loads((tmp_path / "a" / "metrics.json").read_text())["points"]
    assert [p["proposals"] for p in points] == [9, 9]
    assert points[1]["macs_ratio"] > 1
    assert all(p["form"].endswith((", channels-last", ", contiguous")) for p in points)


def test_an_occupied_folder_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text("another: run")
    monkeypatch.setattr(norton, "load", None)
    code, _, error = run_here(f"python -m experiments.throughput out={tmp_path}", monkeypatch, capsys)
    assert code == 2
    assert "holds a run with other settings" in error
    assert written(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize("settings, message", [
    ("batch_sizes=[0]", "batch_sizes is [0]"),
    ("image_sizes=32", "image_sizes is 32"),
    ("repeats=0", "repeats is 0"),
    ("latency=fast", "latency is 'fast'"),
    ("device=nonsense", "device is 'nonsense'"),
    ("compressed=missing.pt", "no checkpoint at missing.pt"),
    ("checkpoint=null", "no network"),
])  # fmt: skip
def test_bad_input(settings, message, tmp_path, monkeypatch, capsys):
    code, _, error = run_here(f"python -m experiments.throughput {settings} out={tmp_path}/a", monkeypatch, capsys)
    assert code == 2
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "a").exists()
