"""Every script, run as a user types it, on the shipped checkpoint; and every bad input from the command line."""

import json
import shlex

import pytest
import torch
from helpers.commands import run, run_here, succeeds, written
from helpers.repository import DENSE, REPOSITORY

import norton
from norton.cli.program import quote

RESULTS = {"config.yaml", "metrics.json", "table.md", "picture.png"}


def test_complexity_as_published(tmp_path):
    out = succeeds(f"python complexity.py model=vgg_16_bn rank=1 compress_rate=[0.6]*6+[0.8]*7 out={tmp_path}")
    assert "MACs    4582498" in out
    assert "params  150667" in out
    assert str(tmp_path) in out
    assert written(tmp_path) == RESULTS
    assert json.loads((tmp_path / "metrics.json").read_text())["params_printed"] == 149648


def test_decompose_prune_evaluate(tmp_path, monkeypatch, capsys):
    a, b, c = (tmp_path / name for name in "abc")
    fast = "decomposition.options.starts=1 decomposition.options.iterations=20 calibration.images=256"
    command = f"python decompose.py checkpoint={DENSE} rank={{conv1:2,*:3}} {fast} out={a}"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert "layer3.8.conv2" in out
    assert written(a) == RESULTS | {"model.pt"}
    assert norton.load(a / "model.pt").conv1.rank == 2
    rates = "[0.]+[0.3]*29"
    command = f"python prune.py checkpoint={a}/model.pt compress_rate={rates} calibration.images=256 out={b}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert written(b) == RESULTS | {"model.pt"}
    lineage = norton.checkpoints.files.read(b / "model.pt")["lineage"]
    assert [record["step"] for record in lineage][-2:] == ["decompose", "prune"]
    few = "+trainer.limit_test_batches=4 latency=eager latency_batch=1"
    command = f"python evaluate.py checkpoint={b}/model.pt {few} out={c}"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 2, error[-2000:]  # pruning claims no accuracy
    assert "cannot be judged: no accuracy is claimed" in out
    metrics = json.loads((c / "metrics.json").read_text())
    small = norton.load(b / "model.pt")
    assert metrics["macs"] == norton.complexity(small).macs
    assert 10 < metrics["top1"] <= metrics["top5"] <= 100


def test_a_published_file_name_is_a_value(tmp_path, monkeypatch, capsys):
    rates = "[0.6]*6+[0.8]*7"
    name = f"vgg_16_bn_{rates}_1_90.32.pt"
    torch.save({"state_dict": norton.build("vgg_16_bn", 1, rates).state_dict(), "rank": 1}, tmp_path / name)
    command = f"python complexity.py checkpoint={tmp_path}/{name} compress_rate={rates} out={tmp_path}/out"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert "MACs    4582498" in out
    command = f"python evaluate.py checkpoint={tmp_path}/{name} data.root={tmp_path}"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 2
    assert "4,582,498" in out  # the counts are judged even without data
    assert "cannot be judged: cifar10: looked for" in error


def test_complexity_of_the_published_command_line(tmp_path, monkeypatch, capsys):
    line = "--dataset imagenet --arch resnet_50 -r 1 -cpr [0.]+[0.1]*2+[0.4]*5+[0.75]*12"
    code, out, error = run_here(f"python {REPOSITORY}/complexity.py {line}", monkeypatch, capsys, tmp_path)
    assert code == 0, error[-2000:]
    assert "MACs    923650408  (77.59% removed" in out
    assert "params  5885736  (76.97% removed)" in out
    (metrics,) = (json.loads(path.read_text()) for path in tmp_path.rglob("metrics.json"))
    assert round(metrics["macs_removed_percent"], 2) == 77.59
    assert metrics["dense"]["macs"] == 4121925096
    (table,) = (path.read_text() for path in tmp_path.rglob("table.md"))
    assert "| total | ResNet50 | 923,650,408 | 77.59 | 5,885,736 | 76.97 |" in table


GOES_ON = "interrupted; the same command with the same out= goes on from here\n"
ANEW = "interrupted; the same command starts anew\n"


@pytest.mark.parametrize("program, said", [
    ("prune.py", ANEW),
    ("-m experiments.deploy", ANEW),
    ("-m experiments.storage", ANEW),
    ("-m experiments.throughput", ANEW),
    ("-m experiments.pipeline steps=[train]", GOES_ON),
    ("-m experiments.selection", GOES_ON),
    ("-m experiments.sensitivity", GOES_ON),
    ("-m detection.train", GOES_ON),
])  # fmt: skip
def test_whoever_interrupts_is_told_whether_it_goes_on(program, said, tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("norton.cli.settings.check_whole", interrupt)
    assert run_here(f"python {program} out={tmp_path}/a", monkeypatch, capsys) == (130, "", said)


NARROW = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes=10):
        layers = []
        for before, after in ((3, 16), (16, 16), (16, 24)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))
        self.input_size = (3, 32, 32)
"""


def test_pipeline_stops_and_goes_on(tmp_path, monkeypatch, capsys):
    folder, narrow = tmp_path / "run", tmp_path / "narrow.pt"
    (tmp_path / "narrow_net.py").write_text(NARROW)
    monkeypatch.syspath_prepend(tmp_path)
    norton.save(norton.build("narrow_net.Net"), narrow)
    command = (
        f"python -m experiments.pipeline checkpoint={narrow} rank=1 compress_rate=0.5 training.epochs=1 "
        "model.arch=narrow_net.Net data=mnist5k decomposition.options.starts=1 decomposition.options.iterations=10 "
        "data.batch_size=32 calibration.images=64 "
        "+trainer.limit_train_batches=10 +trainer.limit_val_batches=4 +trainer.limit_test_batches=8 "
        f"latency_batch=2 out={folder}"
    )
    code, first, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    names = {"0_start.pt", "1_decompose.pt", "2_prune.pt", "3_finetune.pt", "3_finetune", "3_finetune.png", "logs"}
    assert written(folder) == RESULTS | names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics) == ["dense", "decomposed", "pruned", "fine-tuned"]
    assert metrics["dense"]["latency_form"] in ("dense, channels-last", "dense, contiguous")
    assert "fine-tuned" in first
    assert metrics["dense"]["macs"] > metrics["decomposed"]["macs"] > metrics["pruned"]["macs"]
    assert norton.checkpoints.files.read(folder / "3_finetune.pt")["metrics"]["top1"] == metrics["fine-tuned"]["top1"]
    (folder / "2_prune.pt").unlink()  # as if stopped before
    (folder / "metrics.json").unlink()
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    again = json.loads((folder / "metrics.json").read_text())
    assert [stage["top1"] for stage in again.values()] == [stage["top1"] for stage in metrics.values()]
    code, _, error = run_here(command.replace("rank=1", "rank=2"), monkeypatch, capsys)
    assert code == 2
    assert "holds a run with other settings" in error


EXPERIMENTS = ["pipeline", "selection", "verify", "paper_tables", "nmse", "features", "storage", "deploy"]
DETECTION = ["-m detection.train", "-m detection.evaluate"]
PROGRAMS = [
    *DETECTION,
    "decompose.py",
    "prune.py",
    "evaluate.py",
    "complexity.py",
    *(f"-m experiments.{e}" for e in EXPERIMENTS),
]


def test_pipeline_of_training_alone(tmp_path, monkeypatch, capsys):
    none = "training@pretraining=none data=mnist5k latency_batch=2 +trainer.limit_test_batches=1"
    command = f"python -m experiments.pipeline experiment=train_dense {none} out={tmp_path}"
    code, out, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert f"final checkpoint: {tmp_path}/1_train.pt" in out
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["dense"]


def test_rank_per_pattern_as_the_documents_have_it(tmp_path, monkeypatch, capsys):
    page = (REPOSITORY / "docs" / "methods" / "ranks.md").read_text()
    typed = "'rank={conv1: null, layer1.*: 2, *: 3}'"
    assert typed in page
    code, out, error = run_here(f"python complexity.py model=resnet_56 {typed} out={tmp_path}", monkeypatch, capsys)
    assert code == 0, error[-2000:]
    expected = norton.complexity(norton.build("resnet_56", {"conv1": None, "layer1.*": 2, "*": 3}))
    assert f"MACs    {expected.macs}" in out


@pytest.mark.parametrize("script", PROGRAMS)
def test_help(script, monkeypatch, capsys):
    code, out, _ = run_here(f"python {script} --help", monkeypatch, capsys)
    assert not code
    assert "Examples:" in out
    assert "checkpoint:" in out
    assert "$" not in out.split("All settings")[0]


def test_a_network_of_torchvision(tmp_path, monkeypatch, capsys):
    """By name, then from its own checkpoint alone; prune says what is left whole."""
    commands = [
        "prune.py model=torchvision name=shufflenet_v2_x0_5 model.num_classes=10 model.input_size=[3,32,32] "
        "compress_rate=0.3 pruning=l2 out={tmp}/a calibration.batchnorm=false",
        "decompose.py checkpoint={tmp}/a/model.pt rank=1 out={tmp}/b calibration.batchnorm=false",
        "complexity.py checkpoint={tmp}/b/model.pt out={tmp}/c",
    ]
    for command in commands:
        code, said, error = run_here("python " + command.format(tmp=tmp_path), monkeypatch, capsys)
        assert code == 0, error
        if command.startswith("prune"):
            assert "left whole" in said
    whole = json.loads((tmp_path / "a" / "metrics.json").read_text())["left_whole"]
    assert "its channels are mixed" in whole["stage3.0.branch1.2"]
    cost = json.loads((tmp_path / "c" / "metrics.json").read_text())
    assert cost["arch"] == "torchvision.models.shufflenet_v2_x0_5"
    assert cost["params"] < 0.9 * cost["dense"]["params"]


def test_the_next_command_names_a_constructor_of_the_users_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n"
        "def small(num_classes=10):\n"
        "    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]\n"
        "    return nn.Sequential(*layers, nn.Linear(16, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = "model.arch=my_nets.small calibration.batchnorm=false"
    for program in ("prune.py compress_rate=0.5 pruning=l2", "decompose.py rank=1"):
        out = tmp_path / program[:3]
        code, said, error = run_here(f"python {program} {command} out={out}", monkeypatch, capsys)
        assert code == 0, error
        following = f"python evaluate.py checkpoint={out}/model.pt model.arch=my_nets.small"
        assert f"next: {following}\n" in said
    code, _, error = run_here(following.removesuffix(" model.arch=my_nets.small"), monkeypatch, capsys)
    assert code == 2 and "say so with model.arch=my_nets.small from the shell" in error
    _, said, error = run_here(f"{following} out={tmp_path}/b", monkeypatch, capsys)
    assert "claimed and measured" in said and "would import" not in error


def test_a_traceback_can_be_asked_for(monkeypatch, capsys):
    script = (
        "from norton.cli import program; from norton import InputError\n"
        "def fails(cfg): raise InputError('nix')\n"
        "program.script('complexity')(fails)()"
    )
    said = {wanted: run(f"python -c {shlex.quote(script)}", HYDRA_FULL_ERROR=wanted).stderr for wanted in "01"}
    assert said["0"] == "error: nix\n" and "Traceback" in said["1"] and "InputError: nix" in said["1"]
    monkeypatch.setattr("norton.cli.program._TRACEBACK_WANTED", True)  # as the variable has it
    with pytest.raises(norton.InputError, match=r"nix\.pt"):
        run_here("python evaluate.py checkpoint=nix.pt", monkeypatch, capsys)


@pytest.mark.parametrize("typed, quoted", [
    ("compress_rate=[0.6]*6+[0.8]*7", "compress_rate='[0.6]*6+[0.8]*7'"),
    ("compress_rate=[0.1,0.2]", "compress_rate=[0.1,0.2]"),
    ("compress_rate=[0.1]*3,[0.2,0.3]*3", "compress_rate='[0.1]*3','[0.2,0.3]*3'"),
    ("checkpoint=a/vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt", "checkpoint='a/vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt'"),
    ("rank={layer1.*:2}", "rank={layer1.*:2}"),
    ("model=vgg_16_bn", "model=vgg_16_bn"),
    ("--help", "--help"),
    ("compress_rate='[0.6]*6'", "compress_rate='[0.6]*6'"),
])  # fmt: skip
def test_quoting(typed, quoted):
    assert quote(typed) == quoted
