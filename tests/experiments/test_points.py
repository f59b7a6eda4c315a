"""What a point of a sweep is: which settings make another one."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import norton
from experiments.sweeps.grid import expand, plan_points
from experiments.sweeps.identity import fingerprint, meaning
from hydra_plugins.norton_sweeper import GridSweeper
from norton.cli.program import CONFIGS, quote

pytestmark = pytest.mark.quick

SWEEPS = sorted(path.stem for path in (CONFIGS / "experiment").glob("sweep_*.yaml"))
SWEEPS = [name for name in SWEEPS if name not in ("sweep_cifar10", "sweep_vgg")]  # which others share


def config(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("ablation", [quote(override) for override in overrides])


def meant(*overrides):
    return fingerprint(meaning(config("model=resnet_56", "rank=2", "compress_rate=[0.]+[0.2]*29", *overrides)))


@pytest.mark.parametrize(
    "override",
    [
        "out=elsewhere",
        "name=other",
        "shared=elsewhere",
        "extend=true",
        "data.num_workers=2",
        "logger=csv",
        "trainer.accelerator=cpu",
        "compress_rate=[0.0]+[0.20]*10+[0.2]*19",
        "pretraining.epochs=3",  # no step trains the dense network
        "+training.learning_rate=1",  # nothing is fine-tuned
    ],
)
def test_a_point_stays_the_same(override):
    assert meant(override) == meant()


@pytest.mark.parametrize(
    "override",
    [
        "rank=3",
        "compress_rate=[0.]+[0.3]*29",
        "seed=1",
        "pruning=l2",
        "pruning.dense_criterion=pabs",
        "data=mnist5k",
        "data.seed=1",
        "data.root=elsewhere",  # of a checkpoint's own images perhaps
        "calibration.images=64",
        "decomposition.options.starts=1",
        "model.compress_rate=[0.5]*30",
        "training=clutter",
        "steps=[prune,decompose]",
        "split=val",
        "trainer.precision=bf16-mixed",
        "latency_batch=1",
        "latency=eager",
        "pretraining_seed=1",  # of the random weights
    ],
)
def test_a_point_becomes_another(override):
    assert meant(override) != meant()


def test_where_published_data_lie_means_nothing():
    assert meant("data=cifar10", "data.root=elsewhere") == meant("data=cifar10")


def test_how_latency_is_measured_means_nothing_where_it_is_not():
    assert meant("latency_batch=null", "latency=eager", "repeats=9") == meant("latency_batch=null")


@pytest.mark.parametrize("rates", ["[0.]*30", "0", "{layer1.*: 0.0}"])
def test_how_filters_are_chosen_means_nothing_where_all_stay(rates):
    same = f"compress_rate={rates}"
    assert meant(same, "pruning=l2", "pruning.min_filters=2") == meant(same)
    assert meant(same, "pruning.round_to=4") != meant(same)  # removes filters all the same
    assert meant(same) != meant("compress_rate=[0.]+[0.1]*29")


def test_a_checkpoint_counts_by_its_content(tmp_path):
    one, copy, other = (tmp_path / name for name in ("one.pt", "copy.pt", "other.pt"))
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    first, second, third = (meant(f"checkpoint={path}") for path in (one, copy, other))
    assert first == second != third
    one.write_bytes(b"changed")
    assert meant(f"checkpoint={one}") != first


@pytest.mark.parametrize("experiment", SWEEPS)
def test_the_grid_of_each_sweep_can_be_planned(experiment, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("experiments.sweeps.sweeper.sweep_grid", lambda *grid: asked.append(grid))
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("ablation", [f"experiment={experiment}"], return_hydra_config=True)
        network = "vgg_16_bn" if "vgg" in str(cfg.checkpoint) else "resnet_56"
        checkpoint = norton.save(norton.build(network, num_classes=10), tmp_path / "net.pt")
        params, loader = cfg.hydra.sweeper.params, GlobalHydra.instance().config_loader()
        sweeper = GridSweeper(params=params)
        sweeper.config, sweeper.launcher, sweeper.hydra_context = None, None, SimpleNamespace(config_loader=loader)
        sweeper.sweep([f"checkpoint={checkpoint}"])
        ((_, _, _, _, overrides, _),) = asked
        grid, swept = expand(loader, overrides)
        points = list(plan_points(grid, swept, lambda job: compose("ablation", [f"experiment={experiment}", *job])))
    assert set(swept) == set(params) and len({planned.label for planned in points}) == len(points) == len(grid)
