"""What points share: files that one of them makes while the others wait, networks and data that a process keeps."""

import functools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from torch import nn

from experiments.sweeps.folder import lock
from norton.checkpoints.files import read
from norton.checkpoints.rebuilding import rebuild
from norton.cli import opening

if TYPE_CHECKING:
    from norton.data.datamodule import ClassificationData


@functools.lru_cache(maxsize=2)
def kept_data(settings: str) -> "ClassificationData":
    """The data of a point, kept for the next: making or reading them takes longer than many a point."""
    return opening.made_data(json.loads(settings))


def opened(path: str | Path, arch: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A network that points share and none changes, and the content of its file."""
    status = os.stat(path)
    return _opened_once(str(path), arch, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=12)
def _opened_once(path: str, arch: str | None, changed: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    content = read(path)
    return rebuild(content, path, arch=arch), content


@contextmanager
def made_once(path: Path, say: Callable[[str], None]) -> Iterator[bool]:
    """Whether a shared file is missing or damaged and this process is the one to make it; others wait."""
    if usable(path):
        yield False
        return
    mine = lock(path.parent / "locks" / f"{path.stem}.lock", timeout=0)
    try:
        mine.acquire()
    except Timeout:
        say(f"wait: another point is making {path.name}")
        mine.acquire(timeout=-1)
    try:
        yield not usable(path)
    finally:
        mine.release()


def usable(path: Path) -> bool:
    """Whether a shared file is there and whole."""
    if not path.exists():
        return False
    try:
        json.loads(path.read_text()) if path.suffix == ".json" else read(path)
    except ValueError:  # also InputError
        print(f"{path} is damaged and made again")
        path.unlink(missing_ok=True)
        return False
    return True
