"""Segmentation from the shell: trained, compressed, measured and verified by mean IoU."""

import json
import re

import pytest
from helpers.commands import run_here
from helpers.segmentation import write_folder

import norton

SMALL = "model.arch=helpers.segmentation.WithAuxiliary"
QUICK = "data.batch_size=8 trainer.enable_progress_bar=false"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("scenes"), 30)


@pytest.fixture
def shell(scenes, monkeypatch, capsys):
    data = f"data=segmentation data.root={scenes} {QUICK}"
    return lambda command: run_here(f"python {command} {SMALL} {data}", monkeypatch, capsys)


def test_a_chain_and_what_it_claims(shell, tmp_path):
    code, out, said = shell(
        "-m experiments.pipeline steps=[train,prune] compress_rate=0.25 pruning=taylor "
        "pretraining.epochs=1 pretraining.warmup_epochs=0 "
        f"latency_batch=2 latency=eager out={tmp_path}/chain"
    )
    assert code == 0, said
    assert "test mIoU %" in out and "top-1" not in out
    stages = json.loads((tmp_path / "chain" / "metrics.json").read_text())
    assert list(stages) == ["dense", "pruned"]
    final = stages["pruned"]
    assert final["data"] == "segmentation/folder" and {"miou", "pixel_accuracy", "loss"} < set(final)
    assert final["macs"] < stages["dense"]["macs"]
    net = norton.load(final["checkpoint"], arch="helpers.segmentation.WithAuxiliary")
    assert net.num_classes == 3 and len(net.normalisation[0]) == 3
    code, out, said = shell(
        f"evaluate.py checkpoint={final['checkpoint']} latency_batch=2 latency=eager out={tmp_path}/e"
    )
    assert code == 0, said
    assert "mIoU %" in out and "pixel accuracy %" in out and "top-1" not in out and "Acc@1" not in out
    measured = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert measured["miou"] == pytest.approx(final["miou"], abs=0.01)


PIPELINE = "-m experiments.pipeline steps=[train] latency_batch=2"
BAD = [
    (f"{PIPELINE} model.num_classes=4", r"tells 4 classes apart, .* have only 3.* or data\.classes="),
    (f"{PIPELINE} pretraining.distill=true pretraining.distill_features=1", r"training\.distill_features is about"),
    (f"{PIPELINE} data.name=coco", "'coco' is unknown; choose one of folder, voc, cityscapes"),
]  # fmt: skip


@pytest.mark.parametrize("command, message", BAD)
def test_bad_input(shell, command, message, tmp_path):
    code, _, said = shell(f"{command} out={tmp_path}/out")
    assert code == 2 and re.fullmatch(rf"error: .*{message}.*\n", said), said
    assert not (tmp_path / "out").exists()
