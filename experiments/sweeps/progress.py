"""How far a sweep is: a line per running point and a bar over all, read from its folder."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from experiments.sweeps.folder import Sweep, abandoned, read_result
from experiments.sweeps.grid import Planned
from norton.checkpoints.claims import QUANTITIES, decisive


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
        def __rich__(self) -> Group:
            return Group(*(Text(line) for line in running_lines(sweep)), bar)

    with Live(View(), console=console, refresh_per_second=2, transient=True), watch.running(lambda *_: None):
        yield


class Watch:
    """Looks, in a thread of its own, which of the missing points have got a result."""

    def __init__(self, sweep: Sweep, missing: Sequence[Planned], update: Callable[[], None]):
        self.sweep, self.open, self.update, self.count = sweep, list(missing), update, 0
        self.start = time.time()

    def left(self) -> str:
        """The time that the other points will take, if they take as long as those before."""
        if not self.count:
            return ""
        seconds = (time.time() - self.start) / self.count * len(self.open)
        return f"{timedelta(seconds=round(seconds))} left"

    @contextmanager
    def running(self, tell: Callable[[Planned, Mapping[str, Any]], None]) -> Iterator[None]:
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

    def look(self, tell: Callable[[Planned, Mapping[str, Any]], None]) -> None:
        for planned in list(self.open):
            path = self.sweep.result(planned.point)
            try:
                if path.stat().st_mtime < self.start:
                    continue  # of an earlier start, which failed
                record = read_result(path)
            except (OSError, ValueError):
                continue
            self.open.remove(planned)
            self.count += 1
            self.update()
            tell(planned, record)


def line(planned: Planned, record: Mapping[str, Any], watch: "Watch", total: int) -> str:
    """A finished point in a log, and the time left for the others."""
    outcome = record.get("error") or outcome_of(record["result"])
    took = f"{record['seconds']:.1f} s; {watch.left()}"
    return f"{watch.count}/{total}  {planned.label}: {outcome} ({took})"


def outcome_of(result: Mapping[str, Any]) -> str:
    """The score of a point in words."""
    name = decisive(result)
    return f"{QUANTITIES[name].removesuffix(' %')} {result[name]:.2f}%"


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
