"""Two processes that train together end where one does with the same batches."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.once import once
from helpers.repository import REPOSITORY

import norton
from norton.data.datamodule import ClassificationData
from norton.training import evaluate

# BatchNorm is left out: each process normalises by its own half of a batch, unless trainer.sync_batchnorm, which
# torch has for GPUs alone.
TRAIN = """
import sys
import torch
from torch import nn
from norton.data.datamodule import ClassificationData
from norton.training import Recipe, fit

folder, devices = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10))
data = ClassificationData("mnist5k", batch_size=64 // devices)
strategy = {"devices": devices, "strategy": "ddp" if devices > 1 else "auto", "accelerator": "cpu"}
limits = {"limit_train_batches": 12, "enable_progress_bar": False}
trained = fit(net, data, Recipe(epochs=2, learning_rate=0.1), folder=folder, **strategy, **limits)
torch.save(trained.state_dict(), f"{folder}/trained{torch.distributed.get_rank() if devices > 1 else 0}.pt")
"""
CHAIN = """
import runpy
sys.argv[0:] = ["pipeline", *sys.argv[3:]]
runpy.run_module("experiments.pipeline", run_name="__main__")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    (folder / "train.py").write_text(TRAIN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", str(folder), "1"])
        runpy.run_path(str(folder / "train.py"), run_name="__main__")
    return torch.load(folder / "trained0.pt", weights_only=True)


@pytest.fixture(scope="module")
def torchrun(tmp_path_factory):
    """The folder of a training and then a chain in two processes of torchrun, which take seconds to import."""
    return Path(once(tmp_path_factory, "torchrun", lambda: str(run_both(tmp_path_factory.mktemp("torchrun")))))


def run_both(folder):
    small = "model.compress_rate=[0.9]*13 data=mnist5k data.batch_size=16 calibration.images=16 latency_batch=4"
    once = "training=clutter training.epochs=1 pretraining.epochs=1 +trainer.limit_train_batches=2"
    both = "trainer.devices=2 trainer.strategy=ddp trainer.accelerator=cpu trainer.enable_progress_bar=false"
    chain = f"model=vgg_16_bn steps=[train,decompose,finetune] rank=1 {small} {once} {both} out={folder / 'chain'}"
    (folder / "both.py").write_text(TRAIN + CHAIN)
    port = 20000 + os.getpid() % 20000
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    command = [sys.executable, *launch, str(folder / "both.py"), str(folder), "2", *chain.split()]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_torchrun_with_two_processes(alone, torchrun):
    first, second = (torch.load(path, weights_only=True) for path in sorted(torchrun.glob("trained*.pt")))
    for name, weights in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weights, rtol=1e-4, atol=1e-5)


def test_the_chain_under_torchrun(torchrun):
    claimed = json.loads((torchrun / "chain" / "metrics.json").read_text())["fine-tuned"]
    data = ClassificationData("mnist5k", batch_size=16)  # the chain's: other batches round otherwise
    net = norton.load(torchrun / "chain" / "3_finetune.pt")
    assert claimed["top1"] == evaluate(net, data, accelerator="cpu", enable_progress_bar=False)["top1"]
