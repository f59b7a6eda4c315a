"""Training: it learns, it keeps the best epoch, and being killed does not change what comes out."""

import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from helpers.repository import REPOSITORY
from helpers.training import QUIET, digits, same, tiny
from omegaconf import OmegaConf
from torch import nn

import norton
from norton.common.errors import NortonWarning
from norton.training import HISTORY, Classifier, Recipe, epochs, evaluate, fit


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return fit(tiny(), digits(), Recipe(epochs=5, learning_rate=0.2, warmup_epochs=1), folder=folder, **QUIET), folder


def test_it_learns(trained):
    before = evaluate(tiny(), digits(), **QUIET)
    after = evaluate(trained[0], digits(), **QUIET)
    assert before["top1"] < 35 < 80 < after["top1"] <= after["top5"] <= 100


def test_other_classes_are_refused_and_another_normalisation_is_said():
    net, data = tiny(), digits()
    data._splits = replace(data.splits, classes=tuple("abcdefghij"))
    net.classes = tuple("zbcdefghij")
    with pytest.raises(norton.InputError, match=r"the data mnist5k have a in the place of z; give others"):
        evaluate(net, data, **QUIET)
    net.classes = data.classes
    net.normalisation = ((0.4,), (0.2,))
    with pytest.warns(NortonWarning, match=r"normalised by mean .*, where the network remembers mean \(0\.4\)"):
        evaluate(net, data, **QUIET)


def test_evaluate_is_the_literal_accuracy(trained):
    data = digits()
    hits = total = 0
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            hits += (trained[0].eval()(images).argmax(1) == labels).sum().item()
            total += len(labels)
    assert evaluate(trained[0], data, **QUIET)["top1"] == pytest.approx(100 * hits / total, abs=1e-4)


def test_the_input_is_untouched_and_zero_epochs_change_nothing(tmp_path):
    net = tiny()
    copy = fit(net, digits(), Recipe(epochs=0), folder=tmp_path, **QUIET)
    assert copy is not net
    assert same(copy.state_dict(), tiny().state_dict())
    assert not list(tmp_path.iterdir())


def test_the_best_epoch_on_validation_is_kept(trained):
    scores = {
        name: torch.load(trained[1] / f"{name}.ckpt", weights_only=True)["callbacks"] for name in ("best", "last")
    }
    best = next(state for state in scores["last"].values() if state.get("monitor") == "val/top1")
    measured = evaluate(trained[0], digits(), split="val", **QUIET)["top1"]
    assert measured == pytest.approx(100 * float(best["best_model_score"]), abs=1e-3)


def test_batchnorm_learns_also_in_a_loaded_network(tmp_path):
    net = tiny().eval()
    after = fit(net, digits(), Recipe(epochs=1), folder=tmp_path, **QUIET)
    assert not torch.equal(after[1].running_mean, net[1].running_mean)
    assert after[1].num_batches_tracked == 35
    assert not after.training


def test_warm_up_then_cosine(tmp_path):
    rates = []

    class Spy(Classifier):
        def on_train_batch_end(self, *_):
            rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    recipe = Recipe(epochs=4, learning_rate=0.4, warmup_epochs=1)
    import lightning

    trainer = lightning.Trainer(
        max_epochs=4, logger=False, enable_checkpointing=False, enable_model_summary=False, **QUIET
    )
    trainer.fit(Spy(tiny(), recipe, 10), digits().train_dataloader())
    steps = 35  # 3500 images in batches of 100
    assert rates[0] < 0.02
    assert max(rates) == pytest.approx(0.4, rel=0.01)
    assert abs(rates.index(max(rates)) - steps) <= 1
    assert rates[-1] < 1e-3
    assert rates[steps + 3 * steps // 2] == pytest.approx(0.2, rel=0.1)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import lightning, torch, torchmetrics.classification
torch.set_num_threads(1)
from helpers.training import QUIET, digits, tiny
from norton.training import Recipe, fit

RECIPE = Recipe(epochs=6, learning_rate=0.2, warmup_epochs=1)

def train(folder):  # in a copy of this process, which has imported all and trained nothing
    child = os.fork()
    if not child:
        status = 1
        try:
            torch.save(fit(tiny(), digits(), RECIPE, folder=folder, **QUIET).state_dict(), folder / "done.pt")
            status = 0
        finally:
            os._exit(status)
    return child

def ends(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

whole, killed = map(Path, sys.argv[1:])
assert ends(train(whole)) == 0
moments = random.Random(0)
for kills in range(2):
    child, state = train(killed), killed / "last.ckpt"
    before = state.stat().st_mtime if state.exists() else 0
    while not (state.exists() and state.stat().st_mtime > before):
        assert os.waitpid(child, os.WNOHANG)[0] == 0, f"ended before kill {kills}"
        time.sleep(0.01)
    time.sleep(moments.random() * 0.3)  # somewhere in an epoch, or while a file is written
    assert os.waitpid(child, os.WNOHANG)[0] == 0, f"finished before kill {kills}"
    os.kill(child, signal.SIGKILL)
    assert ends(child) == -signal.SIGKILL
epoch = torch.load(killed / "last.ckpt", weights_only=True)["epoch"]
assert 1 <= epoch < 5, epoch
assert ends(train(killed)) == 0
"""


def test_killed_and_resumed_training_gives_the_same_weights(tmp_path):
    folders = [tmp_path / "whole", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", KILLED, *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = (torch.load(folder / "done.pt") for folder in folders)
    assert same(a, b)
    whole, killed = (epochs(folder / HISTORY) for folder in folders)
    assert whole == killed and [row["epoch"] for row in whole] == [1, 2, 3, 4, 5, 6]


def test_the_scores_of_each_epoch_are_written(trained):
    rows = epochs(trained[1] / HISTORY)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert {"fit/loss", "fit/top1", "val/loss", "val/top1", "val/top5"} <= set(rows[0])
    best = evaluate(trained[0], digits(), split="val", **QUIET)["top1"]
    assert max(100 * row["val/top1"] for row in rows) == pytest.approx(best, abs=1e-3)
    assert rows[-1]["fit/loss"] < rows[0]["fit/loss"]


def test_another_training_in_the_same_folder_begins_anew(tmp_path):
    for epoch in (2, 1):
        fit(tiny(), digits(), Recipe(epochs=epoch), folder=tmp_path, resume=False, limit_train_batches=2, **QUIET)
        assert len(epochs(tmp_path / HISTORY)) == epoch


def test_a_diverging_training_says_so(tmp_path):
    net = tiny()
    net[0].feature.pointwise.weight.data.fill_(float("inf"))
    with pytest.raises(norton.InputError, match=r"lower training\.learning_rate"):
        fit(net, digits(), Recipe(epochs=1), folder=tmp_path, **QUIET)


@pytest.mark.parametrize("setting, message", [
    ({"epochs": -1}, r"training\.epochs"),
    ({"epochs": 1, "learning_rate": "fast"}, r"training\.learning_rate is 'fast'"),
    ({"epochs": 1, "sparsity": -0.1}, r"training\.sparsity is -0\.1"),
    ({"epochs": 1, "select_on": "train"}, "choose one of validation, test"),
    ({"epochs": 1, "compute": "dense"}, r"training\.compute"),
    ({"epochs": 1, "label_smoothing": 1.0}, "label_smoothing"),
])  # fmt: skip
def test_bad_recipes(setting, message):
    with pytest.raises(norton.InputError, match=message):
        Recipe(**setting)


def test_sparsity_adds_the_scales_of_batchnorm_to_the_loss():
    """Network slimming's loss written out: cross-entropy plus λ Σ|γ|, and its subgradient λ sign(γ)."""
    losses, gradients = [], []
    images, labels = next(iter(digits().val_dataloader()))
    for sparsity in (0.0, 0.03):
        net = tiny()
        net[1].weight.data = torch.linspace(-1, 2, 8)
        module = Classifier(net.train(), Recipe(epochs=1, sparsity=sparsity), 10)
        module._log = lambda *_, **__: None
        loss = module.training_step((images, labels), 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad for parameter in net.parameters()])
        expected = nn.functional.cross_entropy(tiny_like(net)(images), labels).item()
        expected += sparsity * sum(abs(scale) for scale in net[1].weight.tolist())
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert losses[1] > losses[0] + 0.1
    names = [name for name, _ in tiny().named_parameters()]
    for name, without, penalised in zip(names, *gradients, strict=True):
        extra = 0.03 * torch.linspace(-1, 2, 8).sign() if name == "1.weight" else torch.zeros_like(without)
        torch.testing.assert_close(penalised - without, extra, rtol=1e-4, atol=1e-6)


def tiny_like(net):
    same = tiny()
    same.load_state_dict(net.state_dict())
    return same.train()


def test_sparsity_makes_scales_small(tmp_path):
    scales = [
        fit(tiny(), digits(), Recipe(epochs=1, sparsity=sparsity), folder=tmp_path / str(sparsity), **QUIET)[1].weight
        for sparsity in (0.0, 0.1)
    ]
    assert scales[1].abs().sum() < 0.8 * scales[0].abs().sum()


def test_sparsity_without_batchnorm_says_so(tmp_path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    with pytest.raises(norton.InputError, match=r"training\.sparsity .* this network has none"):
        fit(net, digits(), Recipe(epochs=1, sparsity=0.1), folder=tmp_path, **QUIET)


def test_the_start_is_kept_and_said_where_no_epoch_is_better(trained, tmp_path):
    net, data = trained[0], digits()
    bad = Recipe(epochs=2, learning_rate=3.0, gradient_clip=0.0, warmup_epochs=0)
    with pytest.warns(NortonWarning, match="no epoch was better than the network it began with"):
        after = fit(net, data, bad, folder=tmp_path, **QUIET)
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in net.state_dict().items())


def test_python_and_the_shell_train_by_the_same_defaults():
    settings = OmegaConf.to_container(OmegaConf.load(REPOSITORY / "configs" / "training" / "clutter.yaml"))
    assert settings.pop("teacher") is None
    assert settings == asdict(Recipe())
