"""Bad input of every program is told in one line."""

import pytest
import torch
from helpers.commands import run_here, written
from helpers.repository import DENSE, REPOSITORY

import norton

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
    (
        "evaluate.py checkpoint={dense} +trainer.limit_test_batches=1 latency=eager latency_batch=1 out={tmp}/cut.pt/x",
        "is a file; choose a folder",
    ),
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
        "prune.py checkpoint={dense} compress_rate=[0.1]*30 data=folder data.root={tmp} out={tmp}/x",
        "data folder: looked for class folders",
    ),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 data.batch_size=abc out={tmp}/x", "batch_size is 'abc'"),
    ("prune.py checkpoint={dense} compress_rate=1.5 out={tmp}/x", "the rate is 1.5"),
    ("prune.py checkpoint={dense} 'compress_rate={{layr1.*:0.5}}' out={tmp}/x", "pattern 'layr1.*' matches no layer"),
    ("prune.py checkpoint={dense} compress_rate=[0.1]*30 pruning=slamp out={tmp}/x", "one number"),
    (
        "prune.py checkpoint={dense} compress_rate=0.3 pruning.compensate=weights out={tmp}/x",
        "choose auto or outputs, or None",
    ),
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


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """A folder of files that are no good, to which no command adds anything."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "cut.pt").write_bytes((REPOSITORY / DENSE).read_bytes()[:5000])
    torch.save({"state_dict": {}, "run": print}, folder / "code.pt")
    net = norton.build("resnet_56")
    norton.save(net, folder / "strange.pt", metrics={"top1": "91.15"})
    norton.save(net, folder / "elsewhere.pt", metrics={"top1": 91.15, "data": "../model/resnet_56"})
    return folder


@pytest.mark.parametrize("command, message", BAD, ids=[f"{c.split()[0]}-{m}" for c, m in BAD])
def test_bad_input_is_one_line(command, message, bad_files, monkeypatch, capsys):
    before = written(bad_files)
    code, _, said = run_here("python " + command.format(dense=DENSE, tmp=bad_files), monkeypatch, capsys)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert written(bad_files) == before
