"""Teachers in the chain of steps and in sweeps."""

import pytest
from helpers.commands import run_here
from helpers.training import copied, network, same
from hydra import compose, initialize_config_dir

import norton
from experiments.sweeps.identity import meaning
from norton.cli.chain import can_teach
from norton.cli.program import CONFIGS, quote

NARROW = "model=vgg_16_bn model.compress_rate=[0.9]*13 data=mnist5k data.batch_size=16"
SHORT = (
    "training=clutter training.epochs=1 pretraining.epochs=1 decomposition.options.starts=1 calibration.images=16 "
    "+trainer.limit_train_batches=2 +trainer.limit_val_batches=1 +trainer.limit_test_batches=1 "
    "trainer.enable_progress_bar=false"
)
TAUGHT = "training.distill=true training.distill_features=1.0"


@pytest.fixture
def pipeline(monkeypatch, capsys):
    def start(words):
        return run_here(f"python -m experiments.pipeline {NARROW} {SHORT} latency_batch=2 {words}", monkeypatch, capsys)

    return start


@pytest.fixture
def teachers(monkeypatch):
    """The teacher of each training of the chain, as `norton.training.fit` is told."""
    import norton.training

    told, fits = [], norton.training.fit

    def spy(*args, teacher=None, **kwargs):
        told.append(teacher)
        return fits(*args, teacher=teacher, **kwargs)

    monkeypatch.setattr(norton.training, "fit", spy)
    return told


def test_the_chain_teaches_by_its_dense_network(pipeline, teachers, tmp_path):
    code, _, said = pipeline(
        f"steps=[train,decompose,prune,finetune] rank=1 compress_rate=[0.3]*13 {TAUGHT} out={tmp_path}/a"
    )
    assert code == 0, said
    dense, tuned = tmp_path / "a" / "1_train.pt", tmp_path / "a" / "4_finetune.pt"
    assert teachers[0] is None and same(copied(teachers[1]), copied(norton.load(dense)))
    record = norton.checkpoints.files.read(tuned)["lineage"][-1]
    assert record["teacher"] == "the dense network" and record["training"]["distill"]
    assert norton.graph.plan.plan_of(norton.load(tuned))[-1]["op"] == "prune"
    # What that network was made of is no dense one any more, unless it is named.
    chain = f"checkpoint={tuned} model.arch=null model.compress_rate=null steps=[finetune] {TAUGHT}"
    code, _, said = pipeline(f"{chain} out={tmp_path}/b")
    assert code == 2 and "training.distill=true, and there is no dense network" in said
    assert "training.teacher=FILE" in said and not (tmp_path / "b").exists()
    code, _, said = pipeline(f"{chain} training.teacher={dense} out={tmp_path}/b")
    assert code == 0, said
    assert same(copied(teachers[2]), copied(norton.load(dense)))
    assert norton.checkpoints.files.read(tmp_path / "b" / "1_finetune.pt")["lineage"][-1]["teacher"] == str(dense)


@pytest.mark.parametrize("settings, message", [
    ("training.teacher=nix.pt", "no checkpoint at nix.pt"),
    ("training.teacher=3", "training.teacher is 3"),
    ("training.teacher={seven}", "tells 7 classes apart, the data mnist5k have 10"),
    ("steps=[decompose,train,finetune]", "no dense network to learn from before the step finetune"),
    ("pretraining.distill=true", "no dense network to learn from before the step train:"),
    ("+training.distil=true", "temperature, distill_weight, distill_features, select_on, compute, teacher"),
])  # fmt: skip
def test_bad_chains(settings, message, pipeline, tmp_path):
    norton.save(norton.build("vgg_16_bn", compress_rate=[0.9] * 13, num_classes=7), tmp_path / "seven.pt")
    settings = settings.replace("{seven}", str(tmp_path / "seven.pt"))
    chain = f"steps=[train,decompose,finetune] rank=1 training.distill=true {settings} out={tmp_path}/a"
    code, _, said = pipeline(chain)
    assert code == 2 and message in said
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("plan, lineage, opened, can", [
    ([], [], True, True),  # a published dense network
    ([], [], False, False),  # random weights
    (["prune"], [], True, False),  # a published compressed network
    (["prune"], ["train"], True, True),  # built narrow, and trained so
    (["prune"], ["train"], False, True),
    (["prune"], ["train", "prune"], True, False),
    (["decompose"], ["train", "decompose", "finetune"], True, False),
    ([], ["train", "finetune"], True, True),
])  # fmt: skip
def test_who_can_teach(plan, lineage, opened, can):
    net = network()
    net.plan = [{"op": op} for op in plan]
    assert can_teach(net, [{"step": step} for step in lineage], opened=opened) == can


# Sweeps


def meant(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        words = ["model=resnet_56", "rank=2", "compress_rate=[0.]*30", "training=clutter", *overrides]
        return meaning(compose("ablation", [quote(word) for word in words]))


def test_points_without_a_teacher_stay_what_they_were(tmp_path):
    assert meant() == meant("training.temperature=2", "training.distill_weight=0.5", "training.teacher=nix.pt")
    assert not {"distill", "temperature", "distill_weight", "distill_features", "teacher"} & set(meant()["training"])
    taught = meant("training.distill=true")
    assert taught != meant() and taught != meant("training.distill=true", "training.temperature=2")
    for name in ("one.pt", "copy.pt"):
        (tmp_path / name).write_bytes(b"weights")
    named = [meant("training.distill=true", f"training.teacher={tmp_path}/{name}") for name in ("one.pt", "copy.pt")]
    assert named[0] == named[1] != taught


def test_a_sweep_with_and_without_a_teacher(teachers, tmp_path, monkeypatch, capsys):
    chain = "steps=[train,decompose,finetune] rank=1 latency_batch=null training.distill=false,true"
    command = f"python -m experiments.ablation {NARROW} {SHORT} {chain} out={tmp_path}/sweep"
    code, _, said = run_here(command, monkeypatch, capsys)
    assert code == 0, said
    dense = norton.load(next((tmp_path / "sweep" / "shared").glob("dense_*.pt")))
    assert [teacher is None for teacher in teachers] == [True, True, False]  # the dense one is trained once
    assert same(copied(teachers[2]), copied(dense))
