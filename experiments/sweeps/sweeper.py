"""Sweeps as Hydra runs them: which points there are, which of them are missing, and how far they are."""

import json
import re
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from filelock import Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    track,
)
from rich.text import Text

import norton
from experiments.sweeps import points
from experiments.sweeps.points import Sweep
from norton.cli import program
from norton.common.files import write_json

PLUGIN = "hydra_plugins.norton.GridSweeper"  # the name in configs/ablation.yaml; Hydra takes no other beginning
QUOTES = "'\""
OWN = ("locks", "shared", "running", "training", "points", "logs")
NOT_OF_A_POINT = ("name", "out", "shared", "extend")  # settings of a sweep as a whole


class Planned(NamedTuple):
    """A point of the grid."""

    point: str
    label: str
    overrides: list[str]
    swept: dict[str, str]
    shares: str  # what it begins with, which other points may have in common with it


class GridSweeper(BasicSweeper):
    """Hydra's own grid, of which only the points are launched that have no result yet.

    A launcher (`hydra/launcher=`) runs them: one after another, in several processes, or as jobs of a cluster.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None):
        # Not the base class's: Hydra's search for plugins runs its module anew, and `super` there means another class.
        self.max_batch_size, self.params = max_batch_size, dict(params or {})

    def sweep(self, arguments: list[str]) -> list:
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        (grid,) = self.split_arguments(parsed, None)
        if not grid:
            raise norton.InputError(f"the grid is empty: {' '.join(arguments)}; give each setting at least one value")
        swept = [_split(override.get_key_element())[0] for override in parsed if override.is_sweep_override()]

        def compose(job: Sequence[str]) -> DictConfig:
            cfg = loader.load_sweep_config(self.config, list(job))
            return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])

        plan = list(plan_points(grid, swept, compose))
        sweep = points.sweep_of(self.config)
        open_sweep(sweep, plan, arguments, bool(self.config.extend), str(self.config.name))
        missing = take_turns(find_missing(sweep, plan))
        print(f"{len(plan)} points, {len(plan) - len(missing)} of them done; {sweep.folder}/")
        if missing:
            with shown_progress(sweep, missing):
                self.launch(sweep, missing)
        summarise(sweep, plan)
        return []

    def launch(self, sweep: Sweep, missing: Sequence[Planned]) -> None:
        """Run points.  Where a process died, those it may have been at run again alone, and the others go on."""
        start, waiting = time.time(), list(missing)
        while waiting:
            batch = waiting[: self.max_batch_size or len(waiting)]
            try:
                self.launch_batch(batch)
                waiting = waiting[len(batch) :]
            except norton.InputError:
                raise
            except Exception:  # each launcher has its own for a process that died
                left = abandoned(sweep)
                suspects = [planned for planned in batch if planned.point in left]
                if not suspects:
                    raise
                for planned in suspects:
                    self.launch_alone(sweep, planned)
                waiting = [planned for planned in waiting if not _recorded_since(sweep, planned, start)]

    def launch_batch(self, batch: Sequence[Planned]) -> None:
        for job in self.launcher.launch([planned.overrides for planned in batch], initial_job_idx=0):
            _ = job.return_value  # raises what kept a point from being recorded

    def launch_alone(self, sweep: Sweep, planned: Planned) -> None:
        start = time.time()
        try:
            self.launch_batch([planned])
        except norton.InputError:
            raise
        except Exception as error:
            about = {"format": points.FORMAT, "point": planned.point, "label": planned.label, "status": "failed"}
            why = f"its process died ({type(error).__name__}), also alone; memory may have run out"
            seconds = time.time() - start
            write_json(sweep.result(planned.point), {**about, "error": why, "traceback": None, "seconds": seconds})


def abandoned(sweep: Sweep) -> set[str]:
    """The points that have begun and whose lock nobody holds, for their process died; their lines are removed."""
    found = set()
    for path in sweep.running("x").parent.glob("*.json"):
        try:
            with sweep.lock(path.stem, timeout=1):
                path.unlink(missing_ok=True)
                found.add(path.stem)
        except Timeout:
            pass
    return found


def _recorded_since(sweep: Sweep, planned: Planned, start: float) -> bool:
    path = sweep.result(planned.point)
    return path.exists() and path.stat().st_mtime >= start


def plan_points(grid: Sequence[Sequence[str]], swept: Sequence[str], compose) -> Iterator[Planned]:
    """Every point of a grid.  Raises InputError for settings that cannot be run, and for a point that repeats."""
    seen: dict[str, Sequence[str]] = {}
    for job in track(grid, "plan", transient=True, disable=len(grid) < 20):
        cfg = compose(job)
        points.check(cfg)
        said = points.meaning(cfg)
        point = points.identity(said)
        if point in seen:
            raise norton.InputError(
                f"two points of the grid are the same: {_words(job, swept)} and {_words(seen[point], swept)}; "
                "leave one out"
            )
        seen[point] = job
        values = dict(_split(override) for override in job)
        shares = points.identity({key: said.get(key) for key in ("rank", "decomposition", "model", "checkpoint")})
        chosen = {key: values[key] for key in swept}
        others = [f"{key} {value.strip(QUOTES)}" for key, value in chosen.items() if key not in points.IN_LABEL]
        label = ", ".join([points.short_label(cfg), *others])
        yield Planned(point, label, list(job), chosen, shares)


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
        index = points.read_index(sweep) if sweep.index.exists() else {"points": {}, "commands": []}
        old = index["points"]
        others = new.keys() - old.keys()
        if old and others and not extend:
            raise norton.InputError(
                f"{sweep.folder} holds another sweep: {len(others)} of these {len(new)} points are not among its "
                f"{len(old)}; choose another name=, or add them to it with extend=true"
            )
        if others:
            commands = [*index["commands"], typed(arguments)]
            write_json(
                sweep.index, {"format": points.FORMAT, "name": name, "commands": commands, "points": {**old, **new}}
            )


def command(planned: Planned, name: str) -> str:
    """The command that measures this point alone."""
    overrides = [override for override in planned.overrides if _split(override)[0] not in NOT_OF_A_POINT]
    words = [word for word in overrides if not word.startswith(("hydra/", "hydra."))]
    return typed([*words, f"name={name}_{planned.point}"])


def typed(arguments: Sequence[str]) -> str:
    """The command as a person types it, without the quotes that Hydra's grammar wants and `program.quote` adds."""
    plain = [re.sub(r"'([^'\\]*)'", r"\1", argument) for argument in arguments]
    words = [new if program.quote(new) == old else old for new, old in zip(plain, arguments, strict=True)]
    return shlex.join(["python", "-m", "experiments.ablation", *words])


def find_missing(sweep: Sweep, plan: Sequence[Planned]) -> list[Planned]:
    """The points without a result: not yet run, failed, or with a file that is no whole result, which is said."""
    missing = []
    for planned in plan:
        try:
            record = points.read_result(sweep.result(planned.point))
        except ValueError:
            print(f"{sweep.result(planned.point)} is no whole result; that point runs again: {planned.label}")
            record = None
        if record is None or record["status"] != "done":
            missing.append(planned)
    return missing


def take_turns(missing: Sequence[Planned]) -> list[Planned]:
    """Points that begin alike far apart, so that several processes do not wait for one to make what they share."""
    queues: dict[str, list[Planned]] = {}
    for planned in missing:
        queues.setdefault(planned.shares, []).append(planned)
    ordered = []
    while any(queues.values()):
        ordered += [queue.pop(0) for queue in queues.values() if queue]
    return ordered


def summarise(sweep: Sweep, plan: Sequence[Planned]) -> None:
    """Say what became of the points; ends the program with 1 where any failed."""
    failed, elsewhere = [], 0
    for planned in plan:
        try:
            record = points.read_result(sweep.result(planned.point))
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
    print(f"  python -m experiments.report sweep={shlex.quote(str(sweep.folder))}")
    if failed:
        sys.exit(1)


# How far they are


@contextmanager
def shown_progress(sweep: Sweep, missing: Sequence[Planned]) -> Iterator[None]:
    """A line per running point and a bar over all, read from the sweep's folder, whoever runs the points."""
    console = Console()
    abandoned(sweep)
    bar = Progress(
        TextColumn("points"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
    task = bar.add_task("", total=len(missing), left="")
    watch = Watch(sweep, missing, lambda: bar.update(task, completed=watch.count, left=watch.left()))
    if not console.is_terminal:  # a log: a line per point that is done
        with watch.running(lambda planned, record: print(line(planned, record, watch, len(missing)), flush=True)):
            yield
        return

    class View:
        def __rich__(self):
            return Group(*(Text(line) for line in running_lines(sweep)), bar)

    with Live(View(), console=console, refresh_per_second=2, transient=True), watch.running(lambda *_: None):
        yield


class Watch:
    """Looks, in a thread of its own, which of the missing points have got a result."""

    def __init__(self, sweep: Sweep, missing: Sequence[Planned], update):
        self.sweep, self.open, self.update, self.count = sweep, list(missing), update, 0
        self.start = time.time()

    def left(self) -> str:
        """The time that the other points will take, if they take as long as those before."""
        if not self.count:
            return ""
        seconds = (time.time() - self.start) / self.count * len(self.open)
        return f"{timedelta(seconds=round(seconds))} left"

    @contextmanager
    def running(self, tell) -> Iterator[None]:
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.5):
                self.look(tell)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.look(tell)

    def look(self, tell) -> None:
        for planned in list(self.open):
            path = self.sweep.result(planned.point)
            try:
                if path.stat().st_mtime < self.start:
                    continue  # of an earlier start, which failed
                record = points.read_result(path)
            except (OSError, ValueError):
                continue
            self.open.remove(planned)
            self.count += 1
            self.update()
            tell(planned, record)


def line(planned: Planned, record: Mapping[str, Any], watch: "Watch", total: int) -> str:
    """A finished point in a log, and the time left for the others."""
    outcome = record.get("error") or f"top-1 {record['result']['top1']:.2f}%"
    took = f"{record['seconds']:.1f} s; {watch.left()}"
    return f"{watch.count}/{total}  {planned.label}: {outcome} ({took})"


def running_lines(sweep: Sweep) -> list[str]:
    """A line per point that is being measured."""
    lines = []
    for path in sorted(sweep.running("x").parent.glob("*.json")):
        try:
            status = json.loads(path.read_text())
        except (OSError, ValueError):
            continue  # done in this moment
        where = "" if status["host"] == socket.gethostname() else f" on {status['host']}"
        lines.append(f"{status['label']}{where}: {status['stage']}, {time.time() - status['started']:.0f} s")
    return lines


def register() -> None:
    """Make the sweeper known to Hydra, which looks for plugins only in installed packages named hydra_plugins."""
    Plugins.instance().class_name_to_class[PLUGIN] = GridSweeper


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _words(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(override for override in job if _split(override)[0] in swept)


def _foreign(folder: Path) -> list[str]:
    """What a sweep that was stopped at its very beginning cannot have left."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OWN)
