"""Two processes that train together end where one does with the same batches."""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers.commands import succeeds
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


def train(folder, launch, devices):
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, *launch, str(folder / "train.py"), str(folder), str(devices)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("trained*.pt"))]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    (weights,) = train(tmp_path_factory.mktemp("alone") / "a", [], 1)
    return weights


def test_torchrun_with_two_processes(alone, tmp_path):
    port = 20000 + os.getpid() % 20000
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    first, second = train(tmp_path / "a", launch, 2)
    for name, weights in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weights, rtol=1e-4, atol=1e-5)


def test_the_chain_under_torchrun(tmp_path):
    port = 20000 + (os.getpid() + 1) % 20000
    small = "model.compress_rate=[0.9]*13 data=mnist5k data.batch_size=16 calibration.images=16 latency_batch=4"
    once = "training=clutter training.epochs=1 pretraining.epochs=1 +trainer.limit_train_batches=2"
    both = "trainer.devices=2 trainer.strategy=ddp trainer.accelerator=cpu trainer.enable_progress_bar=false"
    chain = f"model=vgg_16_bn steps=[train,decompose,finetune] rank=1 {small} {once} {both} out={tmp_path / 'a'}"
    torchrun = f"python -m torch.distributed.run --nproc_per_node=2 --master_port={port} -m experiments.pipeline"
    succeeds(f"{torchrun} {chain}")
    claimed = json.loads((tmp_path / "a" / "metrics.json").read_text())["fine-tuned"]
    data = ClassificationData("mnist5k", batch_size=16)  # the chain's: other batches round otherwise
    alone = evaluate(norton.load(tmp_path / "a" / "3_finetune.pt"), data, accelerator="cpu", enable_progress_bar=False)
    assert claimed["top1"] == alone["top1"]
