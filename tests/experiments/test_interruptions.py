"""Sweeps that are killed, damaged or out of space end like undisturbed ones."""

import errno
import os
import subprocess
import sys
from collections import Counter

from helpers.repository import REPOSITORY
from helpers.sweeps import GRID, TINY, records, results

from experiments.sweeps import measurement
from norton.common import files


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
began = time.monotonic()
whole = attempt(undisturbed)
took = time.monotonic() - began  # a fast machine gets no further between kills than a slow one
killed = [attempt(out, kill_at_write=n) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
killed += [attempt(out, kill_after=took * dice.uniform(0.01, 0.08)) for _ in range(12)]
print("killed", sum(status == signal.SIGKILL for status in killed), "last", attempt(out), whole)
"""


def test_a_sweep_that_is_killed_twenty_times_ends_like_an_undisturbed_one(tmp_path):
    grid = "rank=1,2 compress_rate=[0.]*13,[0.3]*13 training=clutter training.epochs=3"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = f"{grid}\n{tmp_path / 'a'}\n{tmp_path / 'b'}\n"
    command = [sys.executable, "-c", KILLED]
    done = subprocess.run(command, input=words, env=env, capture_output=True, text=True, timeout=600)
    assert done.stdout.rstrip().endswith("killed 20 last 0 0"), done.stdout[-2000:] + done.stderr[-2000:]
    assert len(results(tmp_path / "a")) == 4
    assert results(tmp_path / "a") == results(tmp_path / "b")


DIES = """
import os, signal, sys, warnings
import lightning, torch, torchmetrics.classification
from joblib.externals.loky.backend.context import set_start_method
from experiments import ablation
from experiments.sweeps import measurement
measure = measurement.measure
def dies(cfg, *rest):
    if cfg.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does where memory runs out
    return measure(cfg, *rest)
measurement.measure = dies
warnings.simplefilter("ignore")  # of set_start_method
set_start_method("fork")  # workers begin with what is imported here, for each pool would import it anew
sys.argv = ["ablation", *sys.stdin.read().split()]
ablation.main()
"""


def test_a_process_that_dies_is_one_point_that_fails(tmp_path):
    grid = "rank=1,2,3 compress_rate=[0.]*13 hydra/launcher=joblib hydra.launcher.n_jobs=2"
    words = f"{TINY} out={tmp_path / 'a'} {grid}"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", DIES]
    done = subprocess.run(command, input=words, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=300)
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
