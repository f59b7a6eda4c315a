"""Every script, run as a user types it, on the shipped checkpoint; and every bad input from the command line."""

import json

import pytest
import torch
from commands import run, run_here, run_in, succeeds, written
from conftest import REPOSITORY

import norton
from norton.cli.program import quote
from norton.models import foreign

DENSE = "checkpoints/resnet_56_clutter.pt"


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
    fast = "decomposition.options.starts=1"
    out = succeeds(f"python decompose.py checkpoint={DENSE} rank={{conv1:2,*:3}} {fast} out={a}")
    assert "layer3.8.conv2" in out
    assert written(a) == RESULTS | {"model.pt"}
    assert norton.load(a / "model.pt").conv1.rank == 2
    rates = "[0.]+[0.3]*29"
    command = f"python prune.py checkpoint={a}/model.pt compress_rate={rates} out={b}"
    code, _, error = run_here(command, monkeypatch, capsys)
    assert code == 0, error[-2000:]
    assert written(b) == RESULTS | {"model.pt"}
    lineage = norton.checkpoints.files.read(b / "model.pt")["lineage"]
    assert [record["step"] for record in lineage][-2:] == ["decompose", "prune"]
    code, out, error = run_here(f"python evaluate.py checkpoint={b}/model.pt out={c}", monkeypatch, capsys)
    assert code == 2, error[-2000:]  # pruning claims no accuracy
    assert "cannot be judged: no accuracy is claimed" in out
    metrics = json.loads((c / "metrics.json").read_text())
    small = norton.load(b / "model.pt")
    assert metrics["macs"] == norton.complexity(small).macs
    assert 10 < metrics["top1"] <= metrics["top5"] <= 100


def test_a_published_file_name_is_a_value(tmp_path):
    rates = "[0.6]*6+[0.8]*7"
    name = f"vgg_16_bn_{rates}_1_90.32.pt"
    torch.save({"state_dict": norton.build("vgg_16_bn", 1, rates).state_dict(), "rank": 1}, tmp_path / name)
    out = succeeds(f"python complexity.py checkpoint={tmp_path}/{name} compress_rate={rates} out={tmp_path}/out")
    assert "MACs    4582498" in out
    done = run(f"python evaluate.py checkpoint={tmp_path}/{name} data.root={tmp_path}")
    assert done.returncode == 2
    assert "4,582,498" in done.stdout  # the counts are judged even without data
    assert "cannot be judged: cifar10: looked for" in done.stderr


def test_complexity_of_the_published_command_line(tmp_path):
    line = "--dataset imagenet --arch resnet_50 -r 1 -cpr [0.]+[0.1]*2+[0.4]*5+[0.75]*12"
    out = run_in(tmp_path, f"python {REPOSITORY}/complexity.py {line}")
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

    monkeypatch.setattr("norton.cli.steps.whole", interrupt)
    assert run_here(f"python {program} out={tmp_path}/a", monkeypatch, capsys) == (130, "", said)


RANK3 = "checkpoints/resnet_56_clutter_rank3.pt"
SLOW = pytest.mark.slow


@pytest.mark.parametrize("name, code, said", [
    ("resnet_56_[0.]+[0.2]*29_3_96.50.pt", 0, "the claim holds"),
    pytest.param("resnet_56_.0.+.0.2.29_3_96.50.pt", 0, "the claim holds", marks=SLOW),
    ("resnet_56_pabs_[0.]+[0.2]*29_3_99.00.pt", 1, "the name claims top-1 99.00, measured 96.50"),
    pytest.param("resnet_56_[0.]+[0.2]*9_3_96.50.pt", 1, "which fit no resnet_56", marks=SLOW),
    pytest.param("resnet_56_[0.]+[0.2*29_3_96.50.pt", 0, "cannot read the rates '[0.]+[0.2*29'", marks=SLOW),
    ("vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt", 1, "the name says vgg_16_bn, the file holds a resnet_56; the file counts"),
])  # fmt: skip
def test_names_are_verified(name, code, said, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_bytes((REPOSITORY / RANK3).read_bytes())
    command = f"python evaluate.py checkpoint={tmp_path}/{name} out={tmp_path}/out"
    done, out, error = run_here(command, monkeypatch, capsys)
    assert done == code, error[-2000:]
    assert said in out
    assert out.splitlines()[-1] == " * Acc@1 96.500 Acc@5 99.700"
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["verdict_code"] == code
    assert metrics["macs"] == 37862922


def test_a_file_without_its_own_claims_is_judged_by_its_name(tmp_path):
    """The published command line, on a file as published: a bare state_dict."""
    path = tmp_path / "resnet_56_[0.]+[0.2]*29_3_90.00.pt"
    torch.save({"state_dict": norton.load(REPOSITORY / RANK3).state_dict()}, path)
    flags = f"--arch resnet_56 --ckpt {path} -r 3 -cpr [0.]+[0.2]*29 --batch_size 256 --gpu 0 --dataset clutter"
    out = run_in(tmp_path, f"python {REPOSITORY}/evaluate.py {flags}", code=2)
    assert "the claim is about cifar10, test; this is clutter, test" in out
    assert out.splitlines()[-1] == " * Acc@1 96.500 Acc@5 99.700"


def test_verify(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("registry.yaml", "resnet_56_clutter_rank3.pt"):
        (folder / name).write_bytes((REPOSITORY / "checkpoints" / name).read_bytes())
    out = succeeds(f"python -m experiments.verify registry={folder}/registry.yaml out={tmp_path}/a")
    assert "96.50 / 96.50" in out
    table = (tmp_path / "a" / "table.md").read_text()
    verdicts = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in table.splitlines()[2:]}
    assert verdicts.pop("resnet_56_clutter_rank3.pt") == "holds"
    assert set(verdicts.values()) == {"absent"}
    file = folder / "resnet_56_clutter_rank3.pt"
    file.write_bytes((REPOSITORY / DENSE).read_bytes())
    done = run(f"python -m experiments.verify registry={folder}/registry.yaml out={tmp_path}/b")
    assert done.returncode == 2
    assert "SHA-256" in done.stdout
    (folder / "mine.yaml").write_text("resnet_56_clutter_rank3.pt: {sha256: null, data: clutter, top1: 95.0}")
    done = run(f"python -m experiments.verify registry={folder}/mine.yaml out={tmp_path}/c")
    assert done.returncode == 1
    assert "the registry claims top-1 95.00, measured 96.40" in done.stdout
    done = run(f"python evaluate.py checkpoint={file}")
    assert done.returncode == 2
    assert "SHA-256" in done.stderr


def test_pipeline_stops_and_goes_on(tmp_path):
    command = (
        f"python -m experiments.pipeline checkpoint={DENSE} rank=1 compress_rate=[0.]+[0.6]*29 training.epochs=1 "
        f"decomposition.options.starts=1 data.copies=[1,1,1] latency_batch=2 out={tmp_path}"
    )
    first = succeeds(command)
    names = {"0_start.pt", "1_decompose.pt", "2_prune.pt", "3_finetune.pt", "3_finetune", "logs"}
    assert written(tmp_path) == RESULTS | names
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert list(metrics) == ["dense", "decomposed", "pruned", "fine-tuned"]
    assert metrics["dense"]["latency_form"] in ("dense, channels-last", "dense, contiguous")
    assert "fine-tuned" in first
    assert metrics["dense"]["macs"] > metrics["decomposed"]["macs"] > metrics["pruned"]["macs"]
    assert norton.checkpoints.files.read(tmp_path / "3_finetune.pt")["metrics"]["top1"] == metrics["fine-tuned"]["top1"]
    (tmp_path / "2_prune.pt").unlink()  # as if stopped before
    (tmp_path / "metrics.json").unlink()
    succeeds(command)
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert [stage["top1"] for stage in again.values()] == [stage["top1"] for stage in metrics.values()]
    other = run(command.replace("rank=1", "rank=2"))
    assert other.returncode == 2
    assert "holds a run with other settings" in other.stderr


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


def test_pipeline_of_training_alone(tmp_path):
    none = "training@pretraining=none data=mnist5k latency_batch=2"
    out = succeeds(f"python -m experiments.pipeline experiment=train_dense {none} out={tmp_path}")
    assert f"final checkpoint: {tmp_path}/1_train.pt" in out
    assert list(json.loads((tmp_path / "metrics.json").read_text())) == ["dense"]


def test_rank_per_pattern_as_the_readme_has_it(tmp_path):
    readme = (REPOSITORY / "README.md").read_text()
    typed = "'rank={conv1: null, layer1.*: 2, *: 3}'"
    assert typed in readme
    out = succeeds(f"python complexity.py model=resnet_56 {typed} out={tmp_path}")
    expected = norton.complexity(norton.build("resnet_56", {"conv1": None, "layer1.*": 2, "*": 3}))
    assert f"MACs    {expected.macs}" in out


@pytest.mark.parametrize("script", PROGRAMS)
def test_help(script, monkeypatch, capsys):
    code, out, _ = run_here(f"python {script} --help", monkeypatch, capsys)
    assert not code
    assert "Examples:" in out
    assert "checkpoint:" in out
    assert "$" not in out.split("All settings")[0]


METHODS = [
    ("compress_rate=0.3 pruning=l1", 11),
    ("compress_rate=0.3 pruning=taylor data=mnist5k calibration.images=8", 11),
    ("compress_rate=[0.]+[0.4]*29 pruning=hrank data=mnist5k calibration.images=4", 9),
    ("'compress_rate={layer1.0.*: 0.5, layer2.*: 0.25}' pruning=bn_scale", 8),
    ("pruning=index 'pruning.filters={layer1.0.conv1: \"0, 8, 11-13\"}'", 11),
    ("compress_rate=0.3 pruning=slamp", None),
    ("compress_rate=0.3 pruning=weighted pruning.normalisation=linear", 11),
    ("compress_rate=0.5 pruning=intersection pruning.round_to=2 pruning.rounding=down", None),
    ("compress_rate=0.3 pruning=l2 pruning.compensate=outputs data=mnist5k calibration.images=8", 11),
    ("compress_rate=0.3 pruning=hrank pruning.compensate=outputs data=mnist5k calibration.images=4", 11),
    ("compress_rate=0.3 pruning=l2 pruning.compensate=outputs calibration.images=null", 11),  # then it is left out
]


@pytest.mark.parametrize("settings, width", METHODS)
def test_ways_to_prune(settings, width, tmp_path, monkeypatch, capsys):
    # A root without data: they are opened for criteria that look at them, and for BatchNorm, which is left out here.
    data = "" if "data=" in settings else f"data=cifar10 data.root={tmp_path}"
    command = f"python prune.py checkpoint={DENSE} {settings} {data} calibration.batchnorm=false out={tmp_path}/a"
    code, _, said = run_here(command, monkeypatch, capsys)
    assert code == 0, said
    small = norton.load(tmp_path / "a" / "model.pt")
    before, after = norton.complexity(norton.load(REPOSITORY / DENSE)).macs, norton.complexity(small).macs
    assert after < before
    assert width in (None, small.layer1[0].conv1.out_channels)


BAD = [
    ("complexity.py model=vgg", "unknown model 'vgg'"),
    ("complexity.py model=resnet_56 ranks=1", "no setting 'ranks'"),
    ("complexity.py model=resnet_56 rank=10", "exceeds 9"),
    ("complexity.py model=vgg_16_bn compress_rate=[0.5]*3", "needs 13 rates, got 3"),
    ("complexity.py model=vgg_16_bn compress_rate=[a]*13", "cannot read '[a]*13'"),
    ("complexity.py model=vgg_16_bn compress_rate=[1.0]*13", "below 1"),
    ("complexity.py model=torchvision", "give name="),
    ("complexity.py model=torchvision name=nix", "has nothing callable of the name 'nix'"),
    ("prune.py model.arch=nix.net compress_rate=0.3 out={tmp}/x", "cannot import nix"),
    ("prune.py model=torchvision name=squeezenet1_1 compress_rate=[0.3]*4 out={tmp}/x", "has no published list"),
    ("decompose.py checkpoint={dense}", "no rank"),
    ("decompose.py checkpoint={dense} rank=0", "rank 0"),
    ("decompose.py checkpoint={dense} rank={{layr1.*:2}}", "pattern 'layr1.*' matches no"),
    ("decompose.py checkpoint={dense} rank=2 decomposition.method=nix", "unknown decomposition 'nix'"),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 pruning=nix", "unknown pruning 'nix'"),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 pruning.criterion=nix", "unknown criterion 'nix'"),
    ("evaluate.py checkpoint=nix.pt", "no checkpoint at nix.pt"),
    ("evaluate.py checkpoint={tmp}/cut.pt", "truncated"),
    ("evaluate.py checkpoint={tmp}/code.pt", "refused"),
    ("evaluate.py checkpoint={dense} model=resnet_110", "holds a resnet_56"),
    ("evaluate.py checkpoint={dense} rank=2", "has rank 0, not 2"),
    ("evaluate.py checkpoint={dense} data=cifar10 data.root={tmp}", "cifar"),
    ("evaluate.py checkpoint={dense} out={tmp}/cut.pt/x", "cannot write"),
    ("evaluate.py --ckpt {dense} rank=0", "published flags and settings are mixed: --ckpt and rank=0"),
    ("complexity.py --arch resnet_56 -r", "expected one argument"),
    ("complexity.py --arch resnet_57", "unknown model 'resnet_57'"),
    ("-m experiments.verify registry={tmp}/nix.yaml", "no registry at"),
    ("-m experiments.verify split=nix", "choose one of test, val"),
    ("-m experiments.selection selections=[nix] out={tmp}/x", "unknown selection 'nix'"),
    ("-m experiments.selection seeds=[0,0] out={tmp}/x", "none of them twice"),
    ("-m experiments.selection rank=99 out={tmp}/x", "exceeds 9"),
    ("-m experiments.selection pruning=l2 out={tmp}/x", "all selections are the same"),
    ("evaluate.py checkpoint={tmp}/strange.pt", "top1 is '91.15', which is not a number"),
    ("evaluate.py checkpoint={tmp}/elsewhere.pt", "its accuracy is about '../model/resnet_56', which is none of"),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 pruning.selection=nix", "unknown selection 'nix'"),
    ("evaluate.py checkpoint={dense} split=nosuch", "choose one of test, val"),
    ("evaluate.py checkpoint={dense} latency_batch=0", "latency_batch is 0"),
    ("evaluate.py checkpoint={dense} trainer.precision=foo", "trainer: "),
    (
        "prune.py checkpoint={dense} compress_rate=[0.1]*30 calibration.images=99999999 out={tmp}/x",
        "calibration images",
    ),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 data.batch_size=abc out={tmp}/x", "batch_size 'abc'"),
    ("prune.py checkpoint={dense} compress_rate=1.5 out={tmp}/x", "the rate is 1.5"),
    ("prune.py checkpoint={dense} 'compress_rate={{layr1.*:0.5}}' out={tmp}/x", "pattern 'layr1.*' matches no layer"),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 pruning=slamp out={tmp}/x", "one number"),
    ("prune.py checkpoint={dense} compress_rate=0.3 pruning.compensate=weights out={tmp}/x", "choose outputs, or None"),
    ("prune.py checkpoint={dense} compress_rate=0.3 calibration.ridge=0 out={tmp}/x", "ridge is 0"),
    ("prune.py checkpoint={dense} compress_rate=0.3 pruning.normalisation=nix out={tmp}/x", "normalisation 'nix'"),
    ("prune.py checkpoint={dense} pruning=index out={tmp}/x", "give filters="),
    ("prune.py checkpoint={dense} pruning=index 'pruning.filters={{conv1: 9-4}}' out={tmp}/x", "runs backwards"),
    ("prune.py checkpoint={dense} pruning=index 'pruning.filters={{fc: 1}}' out={tmp}/x", "'fc' cannot be pruned"),
    ("prune.py checkpoint={dense} compress_rate=0.3 pruning=hrank data=cifar10 data.root={tmp} out={tmp}/x", "cifar"),
    ("prune.py checkpoint={dense} compress_rate=[0.5]*1000000000 out={tmp}/x", "1000000000 repetitions"),
    ("decompose.py checkpoint={dense} rank=2 +decomposition.options.foo=3 out={tmp}/x", "has no option foo"),
    ("decompose.py checkpoint={dense} rank=2 decomposition.options.starts=0 out={tmp}/x", "starts is 0"),
    (
        "decompose.py checkpoint={dense} rank=2 calibration=5",
        "a group of settings takes the name of one of its choices",
    ),
    ("decompose.py checkpoint={dense} rank=2 calibration.sequential=no out={tmp}/x", "calibration.sequential is 'no'"),
    ("prune.py checkpoint={dense} compress_rate=0.3 calibration.batchnorm=maybe", "calibration.batchnorm is 'maybe'"),
    ("decompose.py checkpoint={dense} rank=2 calibration.ridge=0 out={tmp}/x", "calibration.ridge is 0"),
    ("decompose.py checkpoint={dense} rank=2 calibration.folder=2024", "calibration.folder: no folder at 2024"),
    ("decompose.py checkpoint={dense} budget=0.4", "budget is 0.4; give the share to keep of one thing"),
    (
        "-m experiments.pipeline checkpoint={dense} budget.macs=0.4",
        "or budget.joint=true, or leave prune out of steps=",
    ),
    (
        "-m experiments.pipeline checkpoint={dense} rank=2 steps=[decompose,finetune] training.teacher={dense}",
        "has nobody to teach; training.distill=true lets it",
    ),
    ("-m experiments.pipeline checkpoint={dense} steps=[melt] out={tmp}/x", "unknown step 'melt'"),
    ("-m experiments.pipeline checkpoint={dense} rank=2 steps=[decompose,prune] out={tmp}/x", "no rates"),
    ("-m experiments.pipeline experiment=demo rank=10 out={tmp}/x", "exceeds 9"),
    ("-m experiments.pipeline experiment=demo compress_rate=[0.1]*3 out={tmp}/x", "needs 30"),
    ("-m experiments.pipeline experiment=demo training.epochs=abc out={tmp}/x", "training.epochs is 'abc'"),
    ("-m experiments.pipeline experiment=demo pretraining=none out={tmp}/x", "pretraining"),
]


@pytest.mark.parametrize("command, message", BAD, ids=[f"{c.split()[0]}-{m}" for c, m in BAD])
def test_bad_input_is_one_line(command, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "cut.pt").write_bytes((REPOSITORY / DENSE).read_bytes()[:5000])
    torch.save({"state_dict": {}, "run": print}, tmp_path / "code.pt")
    net = norton.build("resnet_56")
    norton.save(net, tmp_path / "strange.pt", metrics={"top1": "91.15"})
    norton.save(net, tmp_path / "elsewhere.pt", metrics={"top1": 91.15, "data": "../model/resnet_56"})
    before = written(tmp_path)
    code, _, said = run_here("python " + command.format(dense=DENSE, tmp=tmp_path), monkeypatch, capsys)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert written(tmp_path) == before


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
    assert "splits channels" in whole["stage2.0.branch1.2"]
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
    monkeypatch.setattr(foreign, "_TOLD", set())
    command = "model.arch=my_nets.small calibration.batchnorm=false"
    for program in ("prune.py compress_rate=0.5 pruning=l2", "decompose.py rank=1"):
        out = tmp_path / program[:3]
        code, said, error = run_here(f"python {program} {command} out={out}", monkeypatch, capsys)
        assert code == 0, error
        following = f"python evaluate.py checkpoint={out}/model.pt model.arch=my_nets.small"
        assert f"next: {following}\n" in said
    foreign._TOLD.clear()  # as in a new process
    code, _, error = run_here(following.removesuffix(" model.arch=my_nets.small"), monkeypatch, capsys)
    assert code == 2 and "say so with model.arch=my_nets.small from the shell" in error
    _, said, error = run_here(f"{following} out={tmp_path}/b", monkeypatch, capsys)
    assert "claimed and measured" in said and "would import" not in error


def test_a_traceback_can_be_asked_for():
    assert "Traceback" in run("python evaluate.py checkpoint=nix.pt", HYDRA_FULL_ERROR="1").stderr


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
