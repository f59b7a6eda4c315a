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
    TimeRemainingColumn,
    track,
)

import norton
from experiments import points
from experiments.points import Sweep
from norton import cli
from norton.files import write_json

PLUGIN = "hydra_plugins.norton.GridSweeper"  # the name in configs/ablation.yaml; Hydra takes no other beginning
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
        swept = [override.get_key_element() for override in parsed if override.is_sweep_override()]

        def compose(job: Sequence[str]) -> DictConfig:
            cfg = loader.load_sweep_config(self.config, list(job))
            return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])

        plan = list(plan_points(grid, swept, compose))
        sweep = Sweep(Path(self.config.out), Path(self.config.shared))
        open_sweep(sweep, plan, arguments, bool(self.config.extend), str(self.config.name))
        missing = take_turns(find_missing(sweep, plan))
        print(f"{len(plan)} points, {len(plan) - len(missing)} of them done; {sweep.folder}/")
        if missing:
            with shown_progress(sweep, missing, len(plan)):
                self.launch([planned.overrides for planned in missing])
        summarise(sweep, plan)
        return []

    def launch(self, jobs: Sequence[Sequence[str]]) -> None:
        size = self.max_batch_size or len(jobs)
        for first in range(0, len(jobs), size):
            for done in self.launcher.launch(jobs[first : first + size], initial_job_idx=first):
                _ = done.return_value  # raises what kept a point from being recorded


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
        yield Planned(point, points.short_label(cfg), list(job), {key: values[key] for key in swept}, shares)


def open_sweep(sweep: Sweep, plan: Sequence[Planned], arguments: Sequence[str], extend: bool, name: str) -> None:
    """Write what the sweep consists of.

    Raises InputError where the folder holds another sweep, or something else.
    """
    new = {
        planned.point: {"label": planned.label, "swept": planned.swept, "command": command(planned, name)}
        for planned in plan
    }
    if sweep.folder.exists() and not sweep.index.exists() and any(_shown(sweep.folder)):
        raise norton.InputError(f"{sweep.folder} holds something else than a sweep; choose another name= or out=")
    with sweep.lock("sweep"):
        old = read_index(sweep)["points"] if sweep.index.exists() else {}
        if old and old.keys() != new.keys() and not extend:
            raise norton.InputError(
                f"{sweep.folder} holds another sweep: of its {len(old)} points {len(old.keys() - new.keys())} are not "
                f"in this one, which has {len(new.keys() - old.keys())} others; choose another name=, or add these "
                "points to it with extend=true"
            )
        shown = typed(arguments)
        if old.keys() | new.keys() != old.keys():
            write_json(sweep.index, {"format": points.FORMAT, "name": name, "command": shown, "points": {**old, **new}})


def read_index(sweep: Sweep) -> dict[str, Any]:
    """The points of a sweep.  Raises InputError where the folder holds no sweep."""
    try:
        index = json.loads(sweep.index.read_text())
        assert index["format"] == points.FORMAT and isinstance(index["points"], dict)
    except FileNotFoundError:
        raise norton.InputError(f"{sweep.folder} holds no sweep; give the folder of one, with its sweep.json") from None
    except (ValueError, KeyError, TypeError, AssertionError):
        raise norton.InputError(f"{sweep.index} is damaged; remove it, and start the sweep again") from None
    return index


def command(planned: Planned, name: str) -> str:
    """The command that measures this point alone."""
    overrides = [override for override in planned.overrides if _split(override)[0] not in NOT_OF_A_POINT]
    words = [word for word in overrides if not word.startswith(("hydra/", "hydra."))]
    return typed([*words, f"name={name}_{planned.point}"])


def typed(arguments: Sequence[str]) -> str:
    """The command as a person types it, without the quotes that Hydra's grammar wants and `cli.quote` adds."""
    plain = [re.sub(r"'([^'\\]*)'", r"\1", argument) for argument in arguments]
    words = [new if cli.quote(new) == old else old for new, old in zip(plain, arguments, strict=True)]
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
def shown_progress(sweep: Sweep, missing: Sequence[Planned], total: int) -> Iterator[None]:
    """A line per running point and a bar over all, read from the sweep's folder, whoever runs the points."""
    console = Console()
    forget_dead(sweep)
    bar = Progress(
        TextColumn("points"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
    )
    task = bar.add_task("", total=len(missing))
    watch = Watch(sweep, missing, lambda count: bar.update(task, completed=count))
    if not console.is_terminal:  # a log: a line per point that is done
        with watch.running(lambda planned, record: console.print(line(planned, record, watch.count, len(missing)))):
            yield
        return

    class View:
        def __rich__(self):
            return Group(*running_lines(sweep), bar)

    with Live(View(), console=console, refresh_per_second=2, transient=True), watch.running(lambda *_: None):
        yield


class Watch:
    """Looks, in a thread of its own, which of the missing points have got a result."""

    def __init__(self, sweep: Sweep, missing: Sequence[Planned], update):
        self.sweep, self.open, self.update, self.count = sweep, list(missing), update, 0
        self.start = time.time()

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
            self.update(self.count)
            tell(planned, record)


def line(planned: Planned, record: Mapping[str, Any], count: int, total: int) -> str:
    """A finished point in a log."""
    outcome = record.get("error") or f"top-1 {record['result']['top1']:.2f}%"
    return f"{count}/{total}  {planned.label}: {outcome} ({record['seconds']:.1f} s)"


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


def forget_dead(sweep: Sweep) -> None:
    """Remove the lines of processes that were killed: their locks are free."""
    for path in sweep.running("x").parent.glob("*.json"):
        try:
            with sweep.lock(path.stem, timeout=0):
                path.unlink(missing_ok=True)
        except Timeout:
            pass


def register() -> None:
    """Make the sweeper known to Hydra, which looks for plugins only in installed packages named hydra_plugins."""
    Plugins.instance().class_name_to_class[PLUGIN] = GridSweeper


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _words(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(override for override in job if _split(override)[0] in swept)


def _shown(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))
