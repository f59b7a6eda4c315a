"""Budgets on the command line."""

import json

import pytest
from helpers.commands import run_here

import norton
from norton.budget.choice import Choice
from norton.checkpoints.files import read
from norton.graph.plan import plan_of

NARROW = (
    "model=vgg_16_bn model.compress_rate=[0.95]*13 data=mnist5k calibration.images=16 calibration.batchnorm=false "
    "decomposition.options.starts=1 decomposition.options.iterations=2"
)


def test_decompose(tmp_path, monkeypatch, capsys):
    command = f"python decompose.py {NARROW} budget.macs=0.4 decomposition.objective=outputs out={tmp_path}/out"
    code, out, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    net, content = norton.load(tmp_path / "out" / "model.pt"), read(tmp_path / "out" / "model.pt")
    dense = norton.complexity(norton.build("vgg_16_bn", 0, [0.95] * 13)).macs
    assert 0.396 <= norton.complexity(net).macs / dense <= 0.4
    choice = Choice.from_dict(json.loads((tmp_path / "out" / "metrics.json").read_text())["choice"])
    assert choice.share == norton.complexity(net).macs / dense
    assert {name: rank for name, rank in choice.ranks.items() if rank} == plan_of(net)[-1]["ranks"]
    assert content["lineage"][-1]["rank"] == choice.ranks
    assert content["lineage"][-1]["budget"] == {"macs": 0.4, "params": None, "joint": False}
    assert content["metrics"]["budget"] == choice.summary()
    assert "40% of MACs" in out and "features.conv16" in out and choice.sentence() in " ".join(out.split())
    assert "rank: null" in (tmp_path / "out" / "config.yaml").read_text()


def test_joint_pipeline_goes_on(tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.pipeline {NARROW} budget.macs=0.3 budget.joint=true pruning=l2 pruning.min_filters=2 "
        "steps=[decompose,prune] data.batch_size=16 latency_batch=2 +trainer.limit_test_batches=1 "
        f"out={tmp_path}/out"
    )
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    choice = Choice.from_dict(json.loads((tmp_path / "out" / "budget.json").read_text()))
    dense = norton.complexity(norton.build("vgg_16_bn", 0, [0.95] * 13)).macs
    final = norton.complexity(norton.load(tmp_path / "out" / "2_prune.pt")).macs
    assert final / dense == choice.share and 0.297 <= choice.share <= 0.3
    assert read(tmp_path / "out" / "2_prune.pt")["lineage"][-1]["compress_rate"] == choice.rates
    (tmp_path / "out" / "2_prune.pt").unlink()
    monkeypatch.setattr(norton, "choose_ranks", None)  # it is not asked again
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 0, err
    assert norton.complexity(norton.load(tmp_path / "out" / "2_prune.pt")).macs == final


def test_sweep(tmp_path, monkeypatch, capsys):
    command = (
        f"python -m experiments.ablation {NARROW} budget.macs=0.4 steps=[decompose] data.batch_size=16 "
        f"latency_batch=null +trainer.limit_test_batches=1 decomposition.objective=weights out={tmp_path}/out"
    )
    code, out, err = run_here(command, monkeypatch, capsys)
    assert code == 0, out + err
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "points").glob("*.json")]
    found = {record["label"]: record["result"] for record in records}
    assert found.keys() == {"40% of MACs, seed 0"}
    for label, result in found.items():
        assert 0 <= float(label[:2]) - (100 - result["macs_removed_percent"]) <= 0.01 * float(label[:2])
        assert result["budget"]["ranks"]


@pytest.mark.parametrize("program, settings, message", [
    ("decompose.py", "budget.macs=0.4 rank=2", "both rank and budget.macs are given"),
    ("decompose.py", "budget.macs=0.4 budget.params=0.4", "both macs and params are given"),
    ("decompose.py", "budget.macs=1.5", "macs is 1.5"),
    ("decompose.py", "budget.macs=0.01", "is below the least possible"),
    ("decompose.py", "budget.macs=0.4 budget.joint=true", "budget.joint needs a step that prunes"),
    ("decompose.py", "budget.joint=true", "budget.joint without a budget"),
    ("decompose.py", "budget.macs=0.4 budget.joint=perhaps", "budget.joint is 'perhaps'"),
    ("-m experiments.pipeline", "budget.macs=0.4 steps=[prune,finetune] compress_rate=0.1", "a budget needs decompose"),
    ("-m experiments.pipeline", "budget.macs=0.4 steps=[prune,decompose] compress_rate=0.1", "before it is pruned"),
    ("-m experiments.pipeline", "budget.macs=0.4 budget.joint=true compress_rate=0.1", "both compress_rate and"),
    ("-m experiments.pipeline", "budget.macs=0.01 steps=[train,decompose]", "is below the least possible"),
    ("-m experiments.ablation", "budget.macs=0.4 rank=1,2 steps=[decompose]", "both rank and budget.macs are given"),
])  # fmt: skip
def test_bad_input_of_the_shell(program, settings, message, tmp_path, monkeypatch, capsys):
    command = f"python {program} {NARROW} {settings} out={tmp_path}/out"
    code, _, err = run_here(command, monkeypatch, capsys)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "config.yaml").exists()
