"""The detection programs, run as a user types them, on a few small scenes."""

import json
import shlex

import pytest
from helpers.commands import run_here, written

from detection import load_detector

pytestmark = pytest.mark.usefixtures("thin_heads_throughout")

RATES = "compress_rate=[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
FEW = ["detector.options.min_size=64", "+detector.options.box_detections_per_img=5"]
TINY = ["data.size=64", "data.counts={train:4,val:2,test:2}", "trainer.accelerator=cpu"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a detection program in this process; returns exit code, stdout, stderr."""
    return lambda program, *words: run_here(f"python -m detection.{program} " + shlex.join(words), monkeypatch, capsys)


def test_train_and_evaluate(run, tmp_path):
    small = [*FEW, "detector=maskrcnn", "training.epochs=1", "data.batch_size=2"]
    common = [*TINY, f"data.root={tmp_path}/scenes"]
    code, _, error = run("train", *small, *common, "rank=1", RATES, f"out={tmp_path}/a")
    assert code == 0, error[-2000:]
    results = {"results_bbox.json", "bbox.md", "results_segm.json", "segm.md"}
    assert results | {"config.yaml", "metrics.json", "picture.png", "model.pt"} <= written(tmp_path / "a")
    metrics = json.loads((tmp_path / "a" / "metrics.json").read_text())
    net = load_detector(tmp_path / "a" / "model.pt")
    assert net.recipe["num_classes"] == 11
    assert [layer.rank for layer in net.modules() if hasattr(layer, "rank")] == [1] * 16
    assert net.recipe["categories"][1] == "0"
    code, _, error = run("evaluate", f"checkpoint={tmp_path}/a/model.pt", *common, f"out={tmp_path}/b")
    assert code == 0, error[-2000:]
    found = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert found["bbox"] == pytest.approx(metrics["bbox"], abs=1e-6)
    assert found["segm"] == pytest.approx(metrics["segm"], abs=1e-6)


def test_a_detector_goes_on_from_another(run, tmp_path):
    common = [*TINY, f"data.root={tmp_path}/scenes", *FEW, "training.epochs=0"]
    code, _, error = run("train", *common, "rank=1", RATES, f"out={tmp_path}/a")
    assert code == 0, error[-2000:]
    first = f"checkpoint={tmp_path}/a/model.pt"
    code, out, error = run("train", *common, "detector=keypointrcnn", first, f"out={tmp_path}/b", "seed=1")
    assert code == 0, error[-2000:]
    new = "roi_heads.box_predictor, roi_heads.keypoint_head, roi_heads.keypoint_predictor"
    assert f"from random weights: {new}" in " ".join(out.split())
    faster, keypoint = (load_detector(tmp_path / name / "model.pt") for name in ("a", "b"))
    assert keypoint.plan == faster.plan
    weights = keypoint.state_dict()
    same = {key for key, value in faster.state_dict().items() if weights[key].equal(value)}
    assert same == {key for key in faster.state_dict() if not key.startswith("roi_heads.box_predictor")}
    code, _, error = run("train", *common, first, "rank=1", f"out={tmp_path}/c")
    assert code == 2 and "is a detector, which has its ranks" in error


@pytest.mark.parametrize("program, arguments, message", [
    ("train", ["checkpoint=checkpoints/resnet_56_clutter.pt"], "the backbone is a resnet_56"),
    ("train", ["detector.trainable_layers=9"], "trainable_layers is 9"),
    ("train", ["+detector.options.colour=red"], "has no option colour"),
    ("train", ["training.steps=[5,2]"], "rising epochs"),
    ("train", ["training.compute=nix"], "training.compute is 'nix'"),
    ("train", ["seed=-1"], "seed is -1"),
    ("train", ["data.size=10"], "size is 10"),
    ("train", ["+detector.options.num_classes=5"], "num_classes, which the data decide"),
    ("train", ["detection_data@data=coco"], "no annotations at"),
    ("evaluate", [], "no checkpoint: give checkpoint=FILE"),
    ("evaluate", ["checkpoint=checkpoints/resnet_56_clutter.pt"], "holds no detector"),
])  # fmt: skip
def test_bad_input_is_one_line(program, arguments, message, run, tmp_path):
    tiny = [] if "coco" in str(arguments) else TINY
    code, _, error = run(program, *tiny, *arguments, f"data.root={tmp_path}/data", f"out={tmp_path}/out")
    assert code == 2
    assert message in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "out").exists()
