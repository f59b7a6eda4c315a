"""What files, names and registries claim of the shipped checkpoints, held against what is measured."""

import hashlib
import json

import pytest
import torch
from helpers.commands import run_here
from helpers.once import once
from helpers.repository import DENSE, REPOSITORY

import norton
import norton.training

RANK3 = "checkpoints/resnet_56_clutter_rank3.pt"


@pytest.fixture
def measured_once(monkeypatch, tmp_path_factory):
    """The same weights on the same images have the same accuracy: it is measured by the first test that asks."""
    evaluate = norton.training.evaluate

    def kept(net, data, split="test", **options):
        weights = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
        images = getattr(data.splits, split).images.numpy().tobytes()
        name = hashlib.sha256(weights + images).hexdigest()
        return once(tmp_path_factory, name, lambda: evaluate(net, data, split=split, **options))

    monkeypatch.setattr(norton.training, "evaluate", kept)


@pytest.mark.parametrize("name, code, said", [
    ("resnet_56_[0.]+[0.2]*29_3_96.50.pt", 0, "the claim holds"),
    ("resnet_56_.0.+.0.2.29_3_96.50.pt", 0, "the claim holds"),
    ("resnet_56_pabs_[0.]+[0.2]*29_3_99.00.pt", 1, "the name claims top-1 99.00, measured 96.50"),
    ("resnet_56_[0.]+[0.2]*9_3_96.50.pt", 1, "which fit no resnet_56"),
    ("resnet_56_[0.]+[0.2*29_3_96.50.pt", 0, "cannot read the rates '[0.]+[0.2*29'"),
    ("vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt", 1, "the name says vgg_16_bn, the file holds a resnet_56; the file counts"),
])  # fmt: skip
def test_names_are_verified(name, code, said, measured_once, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes((REPOSITORY / RANK3).read_bytes())
    timed = "" if said == "the claim holds" else "latency=eager latency_batch=1"  # to deploy it once is enough
    command = f"python evaluate.py checkpoint={tmp_path}/{name} {timed} out={tmp_path}/out"
    done, out, error = run_here(command, monkeypatch, capsys)
    assert done == code, error[-2000:]
    assert said in out
    assert out.splitlines()[-1] == " * Acc@1 96.500 Acc@5 99.700"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["verdict_code"] == code
    assert metrics["macs"] == 37862922


def test_a_file_without_its_own_claims_is_judged_by_its_name(measured_once, tmp_path, monkeypatch, capsys):
    """The published command line, on a file as published: a bare state_dict."""
    path = tmp_path / "resnet_56_[0.]+[0.2]*29_3_90.00.pt"
    torch.save({"state_dict": norton.load(REPOSITORY / RANK3).state_dict()}, path)
    flags = f"--arch resnet_56 --ckpt {path} -r 3 -cpr [0.]+[0.2]*29 --batch_size 256 --gpu 0 --dataset clutter"
    code, out, error = run_here(f"python {REPOSITORY}/evaluate.py {flags}", monkeypatch, capsys, tmp_path)
    assert code == 2, error[-2000:]
    assert "the claim is about cifar10, test; this is clutter, test" in out
    assert out.splitlines()[-1] == " * Acc@1 96.500 Acc@5 99.700"


def test_verify(measured_once, tmp_path, monkeypatch, capsys):
    def verified(registry, out):
        command = f"python -m experiments.verify registry={folder}/{registry} out={tmp_path}/{out}"
        return run_here(command, monkeypatch, capsys)

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("registry.yaml", "resnet_56_clutter_rank3.pt"):
        (folder / name).write_bytes((REPOSITORY / "checkpoints" / name).read_bytes())
    code, out, error = verified("registry.yaml", "a")
    assert code == 0, error[-2000:]
    assert "96.50 / 96.50" in out
    table = (tmp_path / "a" / "table.md").read_text()
    verdicts = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in table.splitlines()[2:]}
    assert verdicts.pop("resnet_56_clutter_rank3.pt") == "holds"
    assert set(verdicts.values()) == {"absent"}
    (folder / "mine.yaml").write_text("resnet_56_clutter_rank3.pt: {sha256: null, data: clutter, top1: 95.0}")
    code, out, _ = verified("mine.yaml", "b")
    assert code == 1
    assert "the registry claims top-1 95.00, measured 96.50" in out
    file = folder / "resnet_56_clutter_rank3.pt"
    file.write_bytes((REPOSITORY / DENSE).read_bytes())
    code, out, _ = verified("registry.yaml", "c")
    assert code == 2
    assert "SHA-256" in out
    code, _, error = run_here(f"python evaluate.py checkpoint={file}", monkeypatch, capsys)
    assert code == 2
    assert "SHA-256" in error
