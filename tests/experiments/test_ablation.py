"""Sweeps: what a point is, that none is lost or run twice, and what bad input says."""

import json
from collections import Counter

import pytest
import torch
from helpers.commands import run_here
from helpers.sweeps import GRID, TINY, records, results

import norton
from experiments.sweeps import grid, measurement, sweeper
from experiments.sweeps.folder import Sweep
from experiments.sweeps.identity import fingerprint
from norton.common.errors import InputError


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


# joblib: each process runs two points; submitit: each point has a process, which takes a minute.
SUBMITIT = ("submitit_local hydra.launcher.cpus_per_task=1", "rank=1,2 compress_rate=[0.3]*13")


@pytest.mark.parametrize("launcher, grid", [
    ("joblib hydra.launcher.n_jobs=2", GRID),
    pytest.param(*SUBMITIT, marks=pytest.mark.slow),
])  # fmt: skip
def test_launchers_find_the_same(launcher, grid, finished, tmp_path, monkeypatch, capsys):
    command = f"python -m experiments.ablation {TINY} out={tmp_path / 'a'} {grid} training=clutter training.epochs=1"
    monkeypatch.chdir(tmp_path)
    code, _, err = run_here(f"{command} hydra/launcher={launcher} hydra.sweep.dir={tmp_path}", monkeypatch, capsys)
    assert code == 0, err
    found, expected = results(tmp_path / "a"), results(finished)
    assert len(found) == (4 if grid == GRID else 2)
    assert found == {point: expected[point] for point in found}


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
        grid = f"model=none model.compress_rate=null checkpoint={path} rank=1 compress_rate=[0.]*13 steps=[decompose]"
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
        ("rank=1 compress_rate=[0.]*13 pruning=l1,l2 +trainer.devices=1", "An item is already at 'trainer.devices'"),
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


def test_points_that_begin_alike_take_turns():
    planned = [grid.Planned(f"{a}{b}", "", [], {}, a) for a in "xyz" for b in "123"]
    assert [one.point for one in grid.take_turns(planned)] == ["x1", "y1", "z1", "x2", "y2", "z2", "x3", "y3", "z3"]
