"""A sweep from its grid to its end: which points are missing, who runs them, and what became of them."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

import norton
from experiments.sweeps.folder import FORMAT, Sweep, abandoned, read_index, read_result, sweep_of
from experiments.sweeps.grid import Planned, command, expand, plan_points, take_turns, typed
from experiments.sweeps.progress import shown_progress
from norton.cli.hints import as_typed
from norton.common.files import write_json

OWN = ("locks", "shared", "running", "training", "points", "logs")


def sweep_grid(
    config: DictConfig,
    loader: ConfigLoader,
    launcher: Launcher,
    arguments: Sequence[str],
    overrides: Sequence[str],
    most: int | None = None,
) -> None:
    """Run the points of a grid that have no result yet; ends the program with 1 where any failed.

    arguments: of the command line.  overrides: those of the sweep's config and the arguments.  most: so many jobs at
    once, all where None.  Raises InputError for a grid that cannot be run.
    """
    grid, swept = expand(loader, overrides)
    if not grid:
        raise norton.InputError(f"the grid is empty: {' '.join(arguments)}; give each setting at least one value")

    def compose(job: Sequence[str]) -> DictConfig:
        cfg = loader.load_sweep_config(config, list(job))
        return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])

    plan = list(plan_points(grid, swept, compose))
    sweep = sweep_of(config)
    open_sweep(sweep, plan, arguments, bool(config.extend), str(config.name))
    missing = take_turns(find_missing(sweep, plan))
    if same := len(grid) - len(plan):
        print(f"{len(grid)} combinations, {same} of which differ from others only in settings that nothing uses")
    print(f"{len(plan)} points, {len(plan) - len(missing)} of them done; {sweep.folder}/")
    if missing:
        with shown_progress(sweep, missing):
            launch(launcher, sweep, missing, most)
    summarise(sweep, plan)


def launch(launcher: Launcher, sweep: Sweep, missing: Sequence[Planned], most: int | None) -> None:
    """Run points.  Where a process died, those it may have been at run again alone, and the others go on."""
    start, waiting = time.time(), list(missing)
    while waiting:
        batch = waiting[: most or len(waiting)]
        try:
            launch_batch(launcher, batch)
            waiting = waiting[len(batch) :]
        except norton.InputError:
            raise
        except Exception:  # each launcher has its own for a process that died
            left = abandoned(sweep)
            suspects = [planned for planned in batch if planned.point in left]
            if not suspects:
                raise
            for planned in suspects:
                launch_alone(launcher, sweep, planned)
            waiting = [planned for planned in waiting if not _recorded_since(sweep, planned, start)]


def launch_batch(launcher: Launcher, batch: Sequence[Planned]) -> None:
    for job in launcher.launch([planned.overrides for planned in batch], initial_job_idx=0):
        _ = job.return_value  # raises what kept a point from being recorded


def launch_alone(launcher: Launcher, sweep: Sweep, planned: Planned) -> None:
    start = time.time()
    try:
        launch_batch(launcher, [planned])
    except norton.InputError:
        raise
    except Exception as error:
        about = {"format": FORMAT, "point": planned.point, "label": planned.label, "status": "failed"}
        why = f"its process died ({type(error).__name__}), also alone; memory may have run out"
        seconds = time.time() - start
        write_json(sweep.result(planned.point), {**about, "error": why, "traceback": None, "seconds": seconds})


def _recorded_since(sweep: Sweep, planned: Planned, start: float) -> bool:
    path = sweep.result(planned.point)
    return path.exists() and path.stat().st_mtime >= start


def open_sweep(sweep: Sweep, plan: Sequence[Planned], arguments: Sequence[str], extend: bool, name: str) -> None:
    """Write what the sweep consists of.

    Raises InputError where the folder holds another sweep, or something else.
    """
    new = {
        planned.point: {"label": planned.label, "swept": planned.swept, "command": command(planned, name)}
        for planned in plan
    }
    if sweep.folder.exists() and not sweep.index.exists() and (others := _foreign(sweep.folder)):
        raise norton.InputError(
            f"{sweep.folder} holds something else than a sweep ({others[0]}); choose another name= or out="
        )
    with sweep.lock("sweep"):
        index = read_index(sweep) if sweep.index.exists() else {"points": {}, "commands": []}
        old = index["points"]
        others = new.keys() - old.keys()
        if old and others and not extend:
            raise norton.InputError(
                f"{sweep.folder} holds another sweep: {len(others)} of these {len(new)} points are not among its "
                f"{len(old)}; choose another name=, or add them to it with extend=true"
            )
        if others:
            commands = [*index["commands"], typed(arguments)]
            write_json(sweep.index, {"format": FORMAT, "name": name, "commands": commands, "points": {**old, **new}})


def find_missing(sweep: Sweep, plan: Sequence[Planned]) -> list[Planned]:
    """The points without a result: not yet run, failed, or with a file that is no whole result, which is said."""
    missing = []
    for planned in plan:
        try:
            record = read_result(sweep.result(planned.point))
        except ValueError:
            print(f"{sweep.result(planned.point)} is no whole result; that point runs again: {planned.label}")
            record = None
        if record is None or record["status"] != "done":
            missing.append(planned)
    return missing


def summarise(sweep: Sweep, plan: Sequence[Planned]) -> None:
    """Say what became of the points; ends the program with 1 where any failed."""
    failed, elsewhere = [], 0
    for planned in plan:
        try:
            record = read_result(sweep.result(planned.point))
        except ValueError:
            record = None
        elsewhere += record is None
        if record and record["status"] == "failed":
            failed.append((planned, record["error"]))
    for planned, error in failed:
        print(f"failed: {planned.label}: {error}", file=sys.stderr)
    done = len(plan) - len(failed) - elsewhere
    also = f", {len(failed)} failed" * bool(failed) + f", {elsewhere} run elsewhere" * bool(elsewhere)
    print(f"{done} of {len(plan)} points done{also}; look at them with")
    print(f"  {as_typed('report')} sweep={shlex.quote(str(sweep.folder))}")
    if failed:
        sys.exit(1)


def _foreign(folder: Path) -> list[str]:
    """What a sweep that was stopped at its very beginning cannot have left."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OWN)
