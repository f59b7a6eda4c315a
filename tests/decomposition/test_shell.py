"""Methods and ranks as the README types them."""

import json

import pytest
import torch
from helpers.commands import run_here
from PIL import Image

import norton
from norton.decomposition import DECOMPOSITIONS
from norton.graph.plan import plan_of

NARROW = "model=vgg_16_bn model.compress_rate=[0.9]*13"


@pytest.mark.parametrize("settings, layer, rank", [
    ("decomposition=tucker rank=[2,3]", "features.conv1", [2, 3]),
    ("decomposition=tucker 'rank={features.conv1?: [4, 5], *: {vbmf: -0.2}}'", "features.conv16", [4, 5]),
    ("decomposition=svd 'rank={fraction: 0.25}'", "classifier.linear2", 3),
    ("decomposition=tt 'rank={nmse: 0.5}'", "features.conv0", None),
    ("decomposition=tucker_filter rank=2", "features.conv8", 2),
    ("decomposition=tt_filter rank=[2,1]", "features.conv8", [2, 1]),
    ("decomposition=cp_layer rank=5 decomposition.options.iterations=3", "features.conv8", 5),
    ("decomposition=cp 'rank={nmse: 0.6}' decomposition.options.starts=1", "features.conv8", None),
])  # fmt: skip
def test_decompose(settings, layer, rank, tmp_path, monkeypatch, capsys):
    command = f"python decompose.py {NARROW} {settings} calibration.batchnorm=false out={tmp_path}/out"
    code, out, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    step = plan_of(norton.load(tmp_path / "out" / "model.pt"))[-1]
    assert f"decomposition={step['method']} " in settings + " "
    assert step["ranks"][layer] == rank or rank is None
    assert "NMSE" in out


def test_every_method_has_its_config(monkeypatch, capsys):
    for method in DECOMPOSITIONS:
        code, _, err = run_here(f"python decompose.py {NARROW} decomposition={method}", monkeypatch, capsys)
        assert code == 2 and "no rank: give rank=N" in err


def test_any_list_of_steps(tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.pipeline {NARROW} data=mnist5k steps=[train,prune,decompose,prune] rank=[2,3] "
        "decomposition=tucker pruning=l2 compress_rate=[0.2]*13 calibration.batchnorm=false latency_batch=2 "
        "pretraining.epochs=1 +trainer.limit_train_batches=2 +trainer.limit_val_batches=1 "
        f"+trainer.limit_test_batches=2 data.batch_size=16 out={tmp_path}/out"
    )
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    last = max((tmp_path / "out").glob("*.pt"))
    assert [step["op"] for step in plan_of(norton.load(last))][-3:] == ["prune", "decompose", "prune"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_decompose_for_outputs(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):  # of any size and shape
        Image.effect_noise((40 + 9 * number, 50), 80).convert("RGB").save(folder / f"{number}.png")
    settings = {
        "weights": "",
        "outputs": "decomposition.objective=outputs data=mnist5k calibration.images=20",
        "folder": f"decomposition.objective=outputs data=mnist5k calibration.folder={folder}",
        "none": "decomposition.objective=outputs calibration.images=null",
    }
    found = {}
    for name, setting in settings.items():
        command = f"python decompose.py {NARROW} 'rank={{features.conv3: 1}}' calibration.batchnorm=false {setting}"
        code, _, err = run_here(f"{command} out={tmp_path}/{name}", monkeypatch, capsys)
        assert code == 0, err
        found[name] = norton.load(tmp_path / name / "model.pt").features.conv3.composed_weight()
    assert torch.equal(found["none"], found["weights"])
    assert not torch.equal(found["outputs"], found["weights"])
    assert not torch.equal(found["folder"], found["outputs"])


@pytest.mark.parametrize("settings, message", [
    ("decomposition.objective=output rank=1", "objective is 'output'; choose one of auto, weights, outputs"),
    ("decomposition.objective=outputs rank=1 calibration.ridge=0", "ridge is 0; it must be a number above 0"),
    ("decomposition.objective=outputs rank=1 calibration.folder=nowhere", "no folder at nowhere"),
    ("decomposition=svd rank=1000", "rank 1000 exceeds"),
    ("decomposition=cp rank=[1,2]", "decomposition 'cp' has one rank"),
    ("decomposition=tucker 'rank={fraction: 2}'", "fraction 2 is not a number from 0 to 1"),
])  # fmt: skip
def test_bad_input_is_one_line(settings, message, tmp_path, monkeypatch, capsys):
    command = f"python decompose.py {NARROW} {settings} out={tmp_path}/out"
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
