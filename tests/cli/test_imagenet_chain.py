"""ResNet-50 through the whole chain, on pictures in ImageNet's layout."""

import json

import numpy as np
import pytest
from helpers.commands import run_here, succeeds, written
from PIL import Image

import norton
from norton.calibration import reestimate_batchnorm_
from norton.data.datamodule import ClassificationData
from norton.training import evaluate

RANK, RATES = 1, "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"
CLASSES = 4
SMALL = "data.batch_size=4 data.num_workers=1 data.validation=4 latency_batch=1 latency=eager"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Four classes of noise, each of another mean colour: 3 images to train on, 1 held out, 2 to test on."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for folder, count in (("train", 4), ("val", 2)):
        for label in range(CLASSES):
            (root / folder / f"n{label}").mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 100, (240 + 30 * i, 300 - 20 * label, 3)) + 50 * np.eye(CLASSES)[label, :3]
                Image.fromarray(pixels.astype(np.uint8)).save(root / folder / f"n{label}" / f"{i}.JPEG")
    return root


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    path = tmp_path_factory.mktemp("dense") / "resnet_50.pt"
    norton.save(norton.build("resnet_50", num_classes=CLASSES), path)
    return path


def expected_cost(rank=0, rates=None):
    return norton.complexity(norton.build("resnet_50", rank, rates, num_classes=CLASSES))


@pytest.fixture(scope="module")
def decomposed(tree, dense, tmp_path_factory):
    """A decomposed network, measured in this process, and the file that claims so."""
    net = norton.decompose(norton.load(dense), RANK, starts=1)
    data = ClassificationData("imagenet", 4, root=tree, validation=4)
    reestimate_batchnorm_(net, data.calibration_images(8), 4)
    cost = norton.complexity(net)
    measured = {**evaluate(net, data, accelerator="cpu"), "macs": cost.macs, "params": cost.params}
    path = tmp_path_factory.mktemp("decomposed") / "model.pt"
    norton.save(net, path, metrics={**measured, "data": "imagenet"})
    return path, measured


def test_decomposed(decomposed):
    path, measured = decomposed
    cost = expected_cost(RANK)
    assert (measured["macs"], measured["params"]) == (cost.macs, cost.params)
    assert 0 <= measured["top1"] <= measured["top5"] == 100
    assert norton.load(path).layer1[0].conv2.rank == RANK


def test_evaluation_needs_val_alone(tree, decomposed, tmp_path, monkeypatch, capsys):
    path, measured = decomposed
    (tmp_path / "val").symlink_to(tree / "val")
    command = f"python evaluate.py checkpoint={path} data=imagenet data.root={tmp_path} {SMALL} out={tmp_path}/out"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for key in ("top1", "top5", "macs", "params"):
        assert metrics[key] == measured[key]


@pytest.mark.slow
def test_whole_chain(tree, dense, tmp_path):
    data = f"data=imagenet data.root={tree} {SMALL}"
    out = succeeds(
        f"python -m experiments.pipeline checkpoint={dense} {data} rank={RANK} compress_rate={RATES} "
        "training=imagenet training.epochs=1 calibration.images=8 calibration.batch_size=4 "
        f"decomposition.options.starts=1 out={tmp_path}/run"
    )
    assert "fine-tuned" in out
    results = {"config.yaml", "metrics.json", "table.md", "picture.png", "logs", "3_finetune", "3_finetune.png"}
    assert written(tmp_path / "run") == results | {"0_start.pt", "1_decompose.pt", "2_prune.pt", "3_finetune.pt"}
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    costs = {
        "dense": expected_cost(),
        "decomposed": expected_cost(RANK),
        "pruned": expected_cost(RANK, RATES),
        "fine-tuned": expected_cost(RANK, RATES),
    }
    assert list(metrics) == list(costs)
    for stage, cost in costs.items():
        assert (metrics[stage]["macs"], metrics[stage]["params"]) == (cost.macs, cost.params)
        assert 0 <= metrics[stage]["top1"] <= metrics[stage]["top5"] == 100

    final = tmp_path / "run" / "3_finetune.pt"
    assert norton.checkpoints.files.read(final)["metrics"]["data"] == "imagenet"
    assert [record["step"] for record in norton.checkpoints.files.read(final)["lineage"]] == [
        "decompose",
        "prune",
        "finetune",
    ]
    succeeds(f"python evaluate.py checkpoint={final} {data} out={tmp_path}/again")
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())
    for key in ("top1", "top5", "macs", "params"):
        assert again[key] == metrics["fine-tuned"][key]
