"""Every program that measures a network, on networks that tell the class of each pixel: mean IoU, by its own name."""

import csv
import json

import pytest
import torch
from helpers.commands import run_here, written
from helpers.segmentation import write_folder
from helpers.training import QUIET
from torch.nn import functional as F

import norton
from experiments.explanation.maps import explain, main_class
from experiments.features import check_outputs
from norton.data.datamodule import ClassificationData
from norton.measure.gradcam import explainable, explained_layer, map_correlation
from norton.training import Recipe, evaluate, fit

ARCH = "helpers.segmentation.WithAuxiliary"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("scenes"), 30)


@pytest.fixture(scope="module")
def data(scenes):
    return ClassificationData("segmentation", 8, root=scenes, size=16)


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """The path of a trained network, which gives a dict with half of the height and width."""
    torch.manual_seed(0)
    recipe, folder = Recipe(epochs=6, learning_rate=0.2, warmup_epochs=1), tmp_path_factory.mktemp("dense")
    net = fit(norton.build(ARCH), data, recipe, folder=folder / "training", **QUIET)
    return norton.save(net, folder / "dense.pt", metrics={**evaluate(net, data, **QUIET), "data": data.name})


@pytest.fixture
def program(dense, scenes, monkeypatch, capsys, tmp_path):
    """Run a program on the trained network; returns what it printed and the folder of its results."""

    def start(name, words, begin=True):
        origin = f"checkpoint={dense} model.arch={ARCH}" if begin else ""
        about = f"data=segmentation data.root={scenes} data.batch_size=8" if begin else ""
        code, out, said = run_here(
            f"python -m experiments.{name} {origin} {about} {words} out={tmp_path}/out", monkeypatch, capsys
        )
        assert code == 0, said
        assert "top-1" not in out and "top1" not in out
        for path in (tmp_path / "out").iterdir():
            assert path.suffix not in (".md", ".csv", ".json") or "top" not in path.read_text(), path
        return out, tmp_path / "out"

    return start


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_nmse(program, dense, data):
    out, folder = program("nmse", "ranks=[1,3] decomposition.options.starts=1 calibration.batchnorm=false")
    assert "mIoU % without fine-tuning" in out
    found, net = metrics(folder), norton.load(dense, arch=ARCH)
    assert (
        found["dense_miou"] == pytest.approx(evaluate(net, data, **QUIET)["miou"], abs=0.1) and found["dense_miou"] > 60
    )
    small = norton.decompose(net, 1, starts=1)
    assert found["networks"][0]["miou"] == pytest.approx(evaluate(small, data, **QUIET)["miou"], abs=0.1)
    assert written(folder) >= {"table.md", "picture.png", "nmse_by_layer.csv"}


@torch.no_grad()
def test_sensitivity(program, dense, data):
    words = "ranks=[1] rates=[0.5] split=test device=cpu calibration.batchnorm=false"
    out, folder = program("sensitivity", words)
    assert "mIoU points lost" in out and "dense mIoU " in out
    found, net = metrics(folder), norton.load(dense, arch=ARCH).eval()
    images, _ = data.labelled("test", len(data.splits.test))
    assert found["dense"]["miou"] == pytest.approx(evaluate(net, data, **QUIET)["miou"], abs=0.1)  # a pixel: 0.07
    trial = next(one for one in found["trials"] if one["kind"] == "rate" and one["layer"] == "body.0")
    small = norton.prune(net, {"body.0": 0.5}, criterion="l2", options=norton.PruneOptions(min_filters=1)).eval()
    whole, answers = net(images)["out"], small(images)["out"]
    assert trial["output_error"] == pytest.approx(
        ((whole - answers) ** 2).sum().item() / (whole**2).sum().item(), rel=1e-4
    )
    miou = evaluate(small, data, **QUIET)["miou"]
    assert trial["miou"] == pytest.approx(miou, abs=0.1)
    assert trial["miou_lost"] == pytest.approx(found["dense"]["miou"] - trial["miou"])
    rows = list(csv.DictReader((folder / "sensitivity.csv").open()))
    assert {row["layer"] for row in rows} >= {"body.0", "body.3"} and "miou_lost" in rows[0]


def test_selection(program):
    words = (
        "budgets=[0.25] selections=[exact,published] seeds=[0] rank=2 decomposition.options.starts=1 "
        "training.epochs=1 trainer.enable_progress_bar=false calibration.images=16"
    )
    _, folder = program("selection", words)
    point = json.loads((folder / "points" / "budget0_exact_seed0.json").read_text())
    assert set(point) == {"miou", "miou_before", "macs_removed_percent"}
    (row,) = metrics(folder)
    assert row["exact, before"] == f"{point['miou_before']:.2f}"


SWEEP = (
    "steps=[decompose,prune,finetune] rank=1,2 compress_rate=0.1,0.4 pruning=l2 decomposition.options.starts=1 "
    "calibration.images=16 latency_batch=null training=clutter training.epochs=1"
)


def test_a_sweep_and_its_report(program, data):
    out, folder = program("ablation", f"{SWEEP} training.distill=true")
    records = [json.loads(path.read_text())["result"] for path in (folder / "points").glob("*.json")]
    assert len(records) == 4
    for found in records:
        assert {"miou", "miou_before", "pixel_accuracy", "loss"} <= set(found) and found["dense"]["miou"] > 60
        assert f"mIoU {found['miou']:.2f}%" in out
    out, _ = program("report", f"sweep={folder}", begin=False)
    assert "mIoU %" in out
    assert (folder / "table.md").read_text().startswith("| rank | rates | mIoU % | before fine-tuning |")
    points = list(csv.DictReader((folder / "points.csv").open()))
    assert {float(row["miou"]) for row in points} == {found["miou"] for found in records}
    assert {float(row["miou_before"]) for row in points} == {found["miou_before"] for found in records}
    page = (folder / "report.html").read_text()
    assert f"Dense network: {records[0]['dense']['miou']:.2f}% mIoU," in page and "top-1" not in page
    assert written(folder) >= {"pareto.png", "heatmap.png"}


def test_storage(program, dense, data):
    out, folder = program("storage", "bits=[4]")
    assert "mIoU %" in (folder / "table.md").read_text() and "mIoU %" in out
    found = metrics(folder)["files"]["bits_4"]
    small = norton.load(folder / "bits_4.pt", arch=ARCH)
    assert found["miou"] == pytest.approx(evaluate(small, data, **QUIET)["miou"], abs=0.1)


def test_deploy(program, data, dense):
    """A network that gives a dict keeps its mIoU in every form."""
    words = "batch_sizes=[2] repeats=2 calibration.images=8 compile=false"
    _, folder = program("deploy", words)
    rows = metrics(folder)["rows"]
    whole = evaluate(norton.load(dense, arch=ARCH), data, **QUIET)["miou"]
    assert len(rows) >= 3
    for row in rows:
        assert row["miou"] == pytest.approx(whole, abs=3 if "int8" in row["form"].lower() else 0.1), row["form"]
    assert "mIoU %" in (folder / "table.md").read_text()


def literal_seg_grad_cam(net, image, number, pixels):
    """Vinogradova et al. 2020 for one image (3, H, W) and the output of `body`: α = mean of ∂(Σ of the pixels)/∂A."""
    activation = net.body(image[None]).detach().requires_grad_()
    logits = F.interpolate(net.head(activation.relu()), image.shape[1:], mode="bilinear", align_corners=False)
    (gradient,) = torch.autograd.grad(logits[0, number][pixels].sum(), activation)
    heat = sum(g.mean() * a for g, a in zip(gradient[0], activation[0].detach(), strict=True)).clamp_min(0)
    return F.interpolate(heat[None, None], image.shape[1:], mode="bilinear", align_corners=False)[0, 0]


@pytest.mark.parametrize("target", ["dense", "true"])
def test_maps_are_those_of_seg_grad_cam(target, dense, data):
    net = norton.load(dense, arch=ARCH).eval()
    small = norton.prune(net, 0.4, criterion="l2").eval()
    images, masks = data.labelled("test", 4)
    found = explain({"a": explainable(net), "b": explainable(small)}, "body", images, masks, target)
    logits = F.interpolate(net(images)["out"], (16, 16), mode="bilinear", align_corners=False)
    labels = masks if target == "true" else logits.argmax(1)
    for number, image in enumerate(images):
        counts = torch.tensor([0, *((labels[number] == c).sum() for c in (1, 2))])
        assert found["b"].explained[number] == counts.argmax()
        pixels = labels[number] == counts.argmax()
        for one, view in ((net, found["a"]), (small, found["b"])):
            expected = literal_seg_grad_cam(one, image, int(counts.argmax()), pixels)
            torch.testing.assert_close(view.maps[number], expected, rtol=1e-3, atol=1e-4 * expected.amax().item())
    assert max(view.maps.amax() for view in found.values()) > 0


def test_verify(program, dense, data, tmp_path):
    net = norton.load(dense, arch=ARCH)
    miou, macs = evaluate(net, data, **QUIET)["miou"], norton.complexity(net).macs
    claimed = f"{{sha256: null, data: segmentation/folder, miou: {miou}, macs: {macs}}}"
    (dense.parent / "registry.yaml").write_text(f"{dense.name}: {claimed}\n")
    words = (
        f"registry={dense.parent}/registry.yaml model.arch={ARCH} data.root={data.settings['root']} data.batch_size=8"
    )
    _, folder = program("verify", words, begin=False)
    head, _, row = (folder / "table.md").read_text().splitlines()
    assert head.startswith("| checkpoint | data | mIoU % | pixel accuracy % | MACs |")
    assert f"{miou:.2f} / " in row and row.endswith("| holds |")


def test_the_class_that_is_explained():
    """The one with most pixels after class 0; what is ignored does not count."""
    labels = torch.tensor([[[0, 0, 0, 2, 2, 1, 255, 255, 255]], [[0, 0, 255, 255, 0, 0, 0, 0, 0]], [[1] * 9]])
    assert main_class(labels, 3).tolist() == [2, 0, 1]


def test_features(program, dense, data, tmp_path):
    net = norton.load(dense, arch=ARCH)
    small = norton.prune(net, 0.4, criterion="l2")
    norton.save(small, tmp_path / "small.pt")
    words = f"compressed=[{tmp_path}/small.pt] layer=body images=2 statistics_images=6 batch_size=4"
    _, folder = program("features", words)
    assert "pixels of the same class as dense %" in (folder / "table.md").read_text()
    found, (images, _) = metrics(folder), data.labelled("test", 6)
    views = explain({"a": explainable(net), "b": explainable(small)}, "body", images, None, "dense")
    same = (views["a"].predicted == views["b"].predicted).double().mean().item()
    result = found["networks"]["small"]
    assert 0 < result["agreement_percent"] < 100
    assert result["agreement_percent"] == pytest.approx(100 * same, abs=0.1)
    correlations = map_correlation(views["b"].maps, views["a"].maps)
    expected = correlations[~correlations.isnan()].mean().item()
    assert result["mean_correlation"] == pytest.approx(expected, abs=1e-2)
    assert len(found["shown"]) == 2 and {"explained", "same_pixels_percent"} < set(
        found["shown"][0]["networks"]["small"]
    )
    assert written(folder) >= {"features.png", "table.md"}


def test_the_last_stage_of_torchvisions_networks():
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    net = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    net.input_size = (3, 64, 64)
    assert explained_layer(net) == "backbone.16"


def test_maps_of_a_network_for_another_task_are_refused(data):
    net = torch.nn.Sequential(norton.build("helpers.segmentation.Small"), torch.nn.Flatten())
    net.input_size = (3, 16, 16)
    with pytest.raises(norton.InputError, match=r"gives \(1, 192\), and the data segmentation are for segmentation"):
        check_outputs(net, data)
