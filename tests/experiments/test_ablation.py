"""Sweeps: what a point is, that none is lost or run twice, and what bad input says."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from commands import run_here
from conftest import REPOSITORY
from hydra import compose, initialize_config_dir
from sweeps import TINY, records, results

import norton
from experiments.sweeps import grid, measurement, sweeper
from experiments.sweeps.folder import Sweep
from experiments.sweeps.identity import fingerprint, meaning
from norton.cli.program import CONFIGS, quote
from norton.common import files
from norton.common.errors import InputError

GRID = "rank=1,2 compress_rate=[0.]*13,[0.3]*13"


@pytest.fixture
def sweep(monkeypatch, capsys):
    """Run a sweep of small points in this process; returns exit code, stdout, stderr."""

    def start(folder, more=GRID):
        return run_here(f"python -m experiments.ablation {TINY} out={folder} {more}", monkeypatch, capsys)

    return start


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep of four points with fine-tuning, undisturbed."""
    folder = tmp_path_factory.mktemp("sweep") / "a"
    with pytest.MonkeyPatch.context() as patch:
        command = f"python -m experiments.ablation {TINY} out={folder} {GRID} training=clutter training.epochs=1"
        assert run_here(command, patch, Silent())[0] == 0
    return folder


class Silent:
    def readouterr(self):
        return "", ""


def config(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("ablation", [quote(override) for override in overrides])


def meant(*overrides):
    return fingerprint(meaning(config("model=resnet_56", "rank=2", "compress_rate=[0.]+[0.2]*29", *overrides)))


# What a point is


@pytest.mark.parametrize(
    "override",
    [
        "out=elsewhere",
        "name=other",
        "shared=elsewhere",
        "extend=true",
        "data.root=elsewhere",
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


# Nothing is lost, nothing is done twice


def test_shared_work_is_done_once(finished):
    made = Counter(path.name.split("_")[0] for path in (finished / "shared").glob("*_*"))
    assert made == {"dense": 1, "measures": 1, "decompose": 2}
    assert len(records(finished)) == 4
    assert not list((finished / "running").iterdir()) and not list((finished / "training").iterdir())


def test_a_record_holds_what_a_reader_needs(finished):
    for point, record in records(finished).items():
        assert record["status"] == "done" and record["point"] == point
        assert fingerprint(record["meaning"]) == point
        found = record["result"]
        assert found["macs"] < found["dense"]["macs"]
        assert (finished / "points" / found["checkpoint"]).exists()


def test_a_finished_sweep_is_left_alone(finished, sweep):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.json")}
    code, out, _ = sweep(finished, f"{GRID} training=clutter training.epochs=1")
    assert code == 0 and "4 points, 4 of them done" in out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.json")}


def test_a_point_repeats_by_its_command(finished, tmp_path, monkeypatch, capsys):
    point, about = next(iter(json.loads((finished / "sweep.json").read_text())["points"].items()))
    code, *_ = run_here(f"{about['command']} out={tmp_path / 'b'}", monkeypatch, capsys)
    assert code == 0
    assert results(tmp_path / "b") == {point: results(finished)[point]}


def test_a_truncated_result_runs_again(finished, sweep):
    before = results(finished)
    path = finished / "points" / f"{next(iter(before))}.json"
    path.write_text(path.read_text()[:200])
    code, out, _ = sweep(finished, f"{GRID} training=clutter training.epochs=1")
    assert code == 0 and f"{path} is no whole result; that point runs again" in out
    assert results(finished) == before


def test_a_point_that_fails_is_recorded_and_tried_again(tmp_path, sweep, monkeypatch):
    measure = measurement.measure

    def stumbles(cfg, *rest):
        if cfg.rank == 1:
            raise RuntimeError("out of luck")
        return measure(cfg, *rest)

    monkeypatch.setattr(measurement, "measure", stumbles)
    code, out, err = sweep(tmp_path / "a")
    assert code == 1 and "2 of 4 points done, 2 failed" in out and "RuntimeError: out of luck" in err
    assert Counter(record["status"] for record in records(tmp_path / "a").values()) == {"done": 2, "failed": 2}
    monkeypatch.undo()
    code, out, _ = sweep(tmp_path / "a")
    assert code == 0 and "4 points, 2 of them done" in out
    assert {record["status"] for record in records(tmp_path / "a").values()} == {"done"}


def test_a_point_that_another_process_runs_is_left_to_it(tmp_path, sweep):
    folder = tmp_path / "a"
    assert sweep(folder, "rank=1,2 compress_rate=[0.]*13")[0] == 0
    point = next(iter(records(folder)))
    (folder / "points" / f"{point}.json").unlink()
    held = f"""
from pathlib import Path; from experiments.sweeps.folder import Sweep
with Sweep(Path({str(folder)!r})).lock({point!r}): print("held", flush=True); input()"""
    command = [sys.executable, "-c", held]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        code, out, _ = sweep(folder, "rank=1,2 compress_rate=[0.]*13")
        other.communicate("\n")
    assert code == 0 and "1 run elsewhere" in out and point not in records(folder)


KILLED = f"""
import os, random, signal, sys, time
sys.argv = ["ablation"]
import lightning, torch, torchmetrics.classification
from experiments import ablation
from experiments.sweeps import measurement
from norton.cli import program
from norton.common import files

WORDS = {TINY!r}.split() + sys.stdin.readline().split()
dice = random.Random(0)

def attempt(out, kill_at_write=None, kill_after=None):
    child = os.fork()
    if child:
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]
    count, fsync = [0], os.fsync
    def counted(number):  # in the middle of a write: the temporary file is there, the result is not
        count[0] += 1
        if count[0] == kill_at_write:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(number)
    files.os.fsync = counted
    sys.argv = ["ablation", *WORDS, f"out={{out}}"]
    try:
        ablation.main()
    except SystemExit as done:
        os._exit(done.code or 0)
    os._exit(0)

out, undisturbed = sys.stdin.read().split()
killed = [attempt(out, kill_at_write=n) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
killed += [attempt(out, kill_after=dice.uniform(0.1, 1.8)) for _ in range(12)]
print("killed", sum(status == signal.SIGKILL for status in killed), "last", attempt(out), attempt(undisturbed))
"""


def test_a_sweep_that_is_killed_twenty_times_ends_like_an_undisturbed_one(tmp_path):
    grid = "rank=1,2,3 compress_rate=[0.]*13,[0.3]*13 training=clutter training.epochs=3"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = f"{grid}\n{tmp_path / 'a'}\n{tmp_path / 'b'}\n"
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run(command, input=words, env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.rstrip().endswith("killed 20 last 0 0"), done.stdout[-2000:] + done.stderr[-2000:]
    assert len(results(tmp_path / "a")) == 6
    assert results(tmp_path / "a") == results(tmp_path / "b")


@pytest.mark.parametrize(
    "launcher", ["joblib hydra.launcher.n_jobs=2", "submitit_local hydra.launcher.cpus_per_task=1"]
)
def test_launchers_find_the_same(launcher, finished, tmp_path, monkeypatch, capsys):
    command = f"python -m experiments.ablation {TINY} out={tmp_path / 'a'} {GRID} training=clutter training.epochs=1"
    monkeypatch.chdir(tmp_path)
    code, _, err = run_here(f"{command} hydra/launcher={launcher} hydra.sweep.dir={tmp_path}", monkeypatch, capsys)
    assert code == 0, err
    assert results(tmp_path / "a") == results(finished)


DIES = """
import os, signal
from experiments.sweeps import measurement
measure = measurement.measure
def dies(cfg, *rest):
    if cfg.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
    return measure(cfg, *rest)
measurement.measure = dies
"""


def test_a_process_that_dies_is_one_point_that_fails(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(DIES)
    command = [sys.executable, "-m", "experiments.ablation", *TINY.split(), f"out={tmp_path / 'a'}"]
    command += ["rank=1,2,3", "compress_rate=[0.]*13", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"}
    done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "its process died" in done.stderr, done.stderr[-2000:]
    kept = {record["label"]: record["status"] for record in records(tmp_path / "a").values()}
    assert kept["rank 1, pabs [0.]*13, seed 0"] == "failed" and len(kept) == 3
    assert "2 of 3 points done, 1 failed" in done.stdout


def test_damaged_shared_files_are_made_again(tmp_path, sweep):
    assert sweep(tmp_path / "a")[0] == 0
    before = results(tmp_path / "a")
    for path in (tmp_path / "a" / "shared").glob("*_*"):
        path.write_bytes(path.read_bytes()[:50])
    for path in (tmp_path / "a" / "points").glob("*.json"):
        path.unlink()
    code, out, err = sweep(tmp_path / "a")
    assert code == 0, err
    assert out.count("is damaged and made again") == 4
    assert results(tmp_path / "a") == before


def test_accuracy_is_that_of_the_last_step(tmp_path, sweep):
    code, *_ = sweep(tmp_path / "a", "rank=1 compress_rate=[0.5]*13 steps=[train,decompose,finetune,prune]")
    assert code == 0
    code, *_ = sweep(tmp_path / "b", "rank=1 compress_rate=[0.5]*13 steps=[train,decompose,prune]")
    assert code == 0
    ((first,), (second,)) = (list(results(tmp_path / name).values()) for name in "ab")
    assert first["loss"] == second["loss"]


def test_a_checkpoint_that_was_overwritten_is_read_again(tmp_path, sweep):
    path, losses = tmp_path / "c.pt", []
    for seed in (0, 1):
        torch.manual_seed(seed)
        norton.save(norton.build("vgg_16_bn", 0, "[0.9]*13"), path)
        grid = f"model=none checkpoint={path} rank=1 compress_rate=[0.]*13 steps=[decompose]"
        assert sweep(tmp_path / str(seed), grid)[0] == 0
        losses += [result["dense"]["loss"] for result in results(tmp_path / str(seed)).values()]
    assert losses[0] != losses[1]


def test_an_error_text_may_look_like_markup(tmp_path, sweep, monkeypatch):
    def stumbles(*_):
        raise ValueError("no such thing [/tmp/x] [red]")

    monkeypatch.setattr(measurement, "measure", stumbles)
    code, out, _ = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13")
    assert code == 1 and "ValueError: no such thing [/tmp/x] [red]" in out


def test_points_that_differ_in_nothing_used_run_once(tmp_path, sweep):
    grid = "rank=1 compress_rate=[0.]*13,[0.3]*13 pruning=pabs,l2"
    code, out, _ = sweep(tmp_path / "a", grid)
    assert code == 0 and "4 combinations, 1 of which differ" in out and "3 points, 0 of them done" in out
    criteria = Counter(record["config"]["pruning"]["criterion"] for record in records(tmp_path / "a").values())
    assert criteria == {"pabs": 2, "l2": 1}
    code, out, _ = sweep(tmp_path / "a", grid)
    assert code == 0 and "3 points, 3 of them done" in out


def test_a_part_of_a_finished_sweep(tmp_path, sweep):
    assert sweep(tmp_path / "a", "rank=1,2 compress_rate=[0.]*13")[0] == 0
    code, out, _ = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13")
    assert code == 0 and "1 points, 1 of them done" in out


def test_an_index_that_was_removed_is_made_again(tmp_path, sweep):
    assert sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13")[0] == 0
    (tmp_path / "a" / "sweep.json").write_text("{")
    code, _, err = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13")
    assert code == 2 and "is damaged; remove it" in err
    (tmp_path / "a" / "sweep.json").unlink()
    assert sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13")[0] == 0


def test_wandb_groups_the_points_of_a_sweep(tmp_path, sweep):
    code, *_ = sweep(tmp_path / "a", "rank=1,2 compress_rate=[0.]*13 logger=wandb")
    assert code == 0
    runs = list((tmp_path / "a" / "logs" / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert all(b"ablation" in next(run.glob("*.wandb")).read_bytes() for run in runs)


# Bad input


@pytest.mark.parametrize(
    "grid, message",
    [
        ("rank=range(3,3)", "the grid is empty"),
        ("rank=1,2,1 compress_rate=[0.]*13", "two points of the grid are the same: rank=1 and rank=1"),
        ("rank=2 compress_rate=[0.]*13,[0.0]*13", "two points of the grid are the same"),
        ("rank=1", "no rates"),
        ("compress_rate=[0.]*13", "no rank"),
        ("rank=1 compress_rate=[0.]*13 steps=[prune,train]", "train comes first"),
        ("rank=1 compress_rate=[0.]*13 steps=[squeeze]", "unknown step 'squeeze'"),
        ("rank=1 compress_rate=[0.]*13 trainer.devices=2", "a point of a sweep computes on one device"),
        ("rank=1 compress_rate=[0.]*13 checkpoint=missing.pt", "no checkpoint at missing.pt"),
        ("rank=1 compress_rate=[0.]*13 repeats=0 latency_batch=4", "repeats is 0"),
        ("rank=1 compress_rate=[0.]*13 latency=fast", "latency is 'fast'; choose deployed or eager"),
        ("rank=1 compress_rate=[0.]*13 training=none,nothing", "nothing"),
    ],
)
def test_bad_grids(grid, message, tmp_path, sweep):
    code, _, err = sweep(tmp_path / "a", grid)
    assert code == 2 and message in err
    assert not (tmp_path / "a").exists()


def test_settings_that_are_added_can_be_swept(tmp_path, sweep):
    code, *_ = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13 +trainer.log_every_n_steps=1,2")
    assert code == 0
    labels = [record["label"] for record in records(tmp_path / "a").values()]
    assert sorted(labels) == [f"rank 1, pabs [0.]*13, seed 0, trainer.log_every_n_steps {n}" for n in (1, 2)]


def test_latency_of_deployed_networks_and_of_eager_ones(tmp_path, sweep):
    grid = "rank=1 compress_rate=[0.]*13 latency_batch=2 repeats=1 steps=[decompose,prune] latency=deployed,eager"
    assert sweep(tmp_path / "a", grid)[0] == 0
    found = {record["config"]["latency"]: record["result"] for record in records(tmp_path / "a").values()}
    assert found["deployed"]["latency_form"].endswith((", channels-last", ", contiguous"))
    assert found["eager"]["latency_form"] in ("factored", "grouped", "composed")
    assert all(result[key] > 0 for result in found.values() for key in ("latency_ms", "dense_latency_ms"))


def test_too_large_a_latency_batch_is_found_at_once(tmp_path, sweep):
    code, _, err = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*13 latency_batch=99999")
    assert code == 1 and "latency_batch is 99999" in err
    assert not (tmp_path / "a" / "shared").exists()


def test_rates_that_do_not_fit_fail_as_points(tmp_path, sweep):
    code, _, err = sweep(tmp_path / "a", "rank=1 compress_rate=[0.]*5,[0.]*13")
    assert code == 1 and "needs 13 rates, got 5" in err
    assert Counter(record["status"] for record in records(tmp_path / "a").values()) == {"done": 1, "failed": 1}


def test_a_folder_with_another_sweep_is_refused_unless_extended(tmp_path, sweep):
    folder = tmp_path / "a"
    assert sweep(folder, "rank=1 compress_rate=[0.]*13")[0] == 0
    code, _, err = sweep(folder, "rank=1,2 compress_rate=[0.]*13")
    assert code == 2 and "holds another sweep" in err and "extend=true" in err
    code, out, _ = sweep(folder, "rank=1,2 compress_rate=[0.]*13 extend=true")
    assert code == 0 and "2 points, 1 of them done" in out
    assert len(json.loads((folder / "sweep.json").read_text())["points"]) == 2


def test_a_folder_with_something_else_is_refused(tmp_path, sweep):
    (tmp_path / "thesis.tex").write_text("")
    code, _, err = sweep(tmp_path, "rank=1 compress_rate=[0.]*13")
    assert code == 2 and "holds something else than a sweep" in err


def test_two_sweeps_with_one_name_that_start_together(tmp_path):
    sweep, plan = Sweep(tmp_path / "a"), lambda point: [grid.Planned(point, point, [], {}, "")]
    sweeper.open_sweep(sweep, plan("one"), [], False, "a")
    sweeper.open_sweep(sweep, plan("one"), [], False, "a")
    with pytest.raises(InputError, match="holds another sweep"):
        sweeper.open_sweep(sweep, plan("two"), [], False, "a")


def test_a_full_disk_ends_the_sweep(tmp_path, sweep, monkeypatch):
    fsync, left = os.fsync, [12]

    def filled(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(number)

    monkeypatch.setattr(files.os, "fsync", filled)
    code, _, err = sweep(tmp_path / "a")
    assert code == 2 and "No space left on device" in err
    assert all(record["status"] == "done" for record in records(tmp_path / "a").values())
    monkeypatch.undo()
    assert sweep(tmp_path / "a")[0] == 0
    assert len(results(tmp_path / "a")) == 4


def test_points_that_begin_alike_take_turns():
    planned = [grid.Planned(f"{a}{b}", "", [], {}, a) for a in "xyz" for b in "123"]
    assert [one.point for one in grid.take_turns(planned)] == ["x1", "y1", "z1", "x2", "y2", "z2", "x3", "y3", "z3"]
