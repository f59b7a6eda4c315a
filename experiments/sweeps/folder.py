"""The folder of a sweep: where results lie, what it consists of, and locks that die with their process."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import DictConfig

import norton

FORMAT = 1


@dataclass(frozen=True)
class Sweep:
    """The folder of a sweep, and that of networks which several sweeps may share."""

    folder: Path
    common: Path | None = None

    @property
    def index(self) -> Path:
        return self.folder / "sweep.json"

    def result(self, point: str) -> Path:
        return self.folder / "points" / f"{point}.json"

    def network(self, point: str) -> Path:
        return self.folder / "points" / f"{point}.pt"

    def training(self, point: str) -> Path:
        return self.folder / "training" / point

    def shared(self, name: str) -> Path:
        return (self.common or self.folder / "shared") / name

    def running(self, point: str) -> Path:
        return self.folder / "running" / f"{point}.json"

    def lock(self, name: str, timeout: float = -1) -> FileLock:
        return lock(self.folder / "locks" / f"{name}.lock", timeout)


def lock(path: Path, timeout: float = -1) -> FileLock:
    """A lock that its process loses when it dies; timeout: seconds to wait, for ever where negative."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, timeout=timeout)


def read_result(path: Path) -> dict[str, Any] | None:
    """The record of a point; None where there is none.  Raises ValueError where the file is not a whole record."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("point") != path.stem:
        raise ValueError(f"{path} is no record of this point")
    if (
        record.get("status") not in ("done", "failed")
        or ("result" if record["status"] == "done" else "error") not in record
    ):
        raise ValueError(f"{path} is no whole record")
    return record


def sweep_of(cfg: DictConfig) -> Sweep:
    return Sweep(Path(str(cfg.out)), Path(str(cfg.shared)))


def read_index(sweep: Sweep) -> dict[str, Any]:
    """What a sweep consists of.  Raises InputError where the folder holds no sweep."""
    try:
        index = json.loads(sweep.index.read_text())
    except FileNotFoundError:
        raise norton.InputError(f"{sweep.folder} holds no sweep; give the folder of one, with its sweep.json") from None
    except ValueError:
        index = None
    if not isinstance(index, dict) or index.get("format") != FORMAT or not isinstance(index.get("points"), dict):
        raise norton.InputError(f"{sweep.index} is damaged; remove it, and start the sweep again")
    return index


def is_done(path: Path) -> bool:
    try:
        record = read_result(path)
    except ValueError:
        return False
    return record is not None and record["status"] == "done"


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
