"""What points of a sweep share, each made once: the dense network, the first compression, the ranks of a budget."""

import functools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import Timeout
from omegaconf import DictConfig
from torch import nn

import norton
from experiments.sweeps.folder import Sweep, lock
from experiments.sweeps.identity import fingerprint, meaning
from experiments.sweeps.stages import USED, accuracy, compressed, epoch_line
from norton.budget.choice import Choice
from norton.checkpoints.files import read
from norton.checkpoints.rebuilding import rebuild
from norton.cli import opening, steps
from norton.cli.budgets import spend_budget
from norton.cli.chain import lineage_record
from norton.cli.settings import has_budget
from norton.common.files import write_json


def first_steps(cfg: DictConfig) -> list[str]:
    """The steps whose result is kept for other points: training the dense network, and the first compression."""
    chain = list(cfg.steps)
    count = int(chain[0] == "train")
    return chain[: count + (chain[count : count + 1] in (["decompose"], ["prune"]))]


def start_network(cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]) -> tuple[nn.Module, Path | None]:
    """The network that the points of a sweep compress, opened or trained, and its file."""
    net, origin = start_of(cfg)
    opening.check_classes(net, data)
    if "train" not in cfg.steps:
        return net, None
    said = meaning(cfg)
    about = {
        key: said.get(key) for key in ("checkpoint", "model", "data", "pretraining", "pretraining_seed", "trainer")
    }
    path = sweep.shared(f"dense_{fingerprint(about)}.pt")
    with made_once(path, say) as missing:
        if missing:
            recipe = cfg.copy()
            recipe.seed = cfg.pretraining_seed
            folder = sweep.training(path.stem)
            line = epoch_line(say, "train dense")
            trained = steps.fit(net, recipe, "pretraining", data, folder, dense=net, callbacks=[line], loggers=[])
            lineage = [*origin["lineage"], lineage_record("train", cfg, USED["train"])]
            norton.save(trained, path, metrics={"data": data.name}, lineage=lineage)
            shutil.rmtree(folder, ignore_errors=True)
    return opened(path, cfg.model.arch)[0], path


def start_of(cfg: DictConfig) -> tuple[nn.Module, dict[str, Any]]:
    if cfg.checkpoint is not None:
        net, content = opened(cfg.checkpoint, cfg.model.arch)
        return net, {"lineage": list(content.get("lineage", []))}
    start = cfg.copy()
    start.seed = cfg.pretraining_seed
    return opening.open_network(start)


def opened(path: str | Path, arch: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """A network that points share and none changes, and the content of its file."""
    status = os.stat(path)
    return _opened_once(str(path), arch, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=12)
def _opened_once(path: str, arch: str | None, changed: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    content = read(path)
    return rebuild(content, path, arch=arch), content


def dense_measures(
    dense: nn.Module, file: Path | None, cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]
) -> dict[str, Any]:
    """Accuracy, MACs and parameters of the network that is compressed, measured once."""
    said = meaning(cfg)
    about = {key: said.get(key) for key in ("checkpoint", "model", "data", "split", "trainer", "pretraining_seed")}
    path = sweep.shared(f"measures_{fingerprint(about | {'file': file and file.name})}.json")
    with made_once(path, say) as missing:
        if missing:
            cost = norton.complexity(dense)
            write_json(path, {**accuracy(dense, cfg, data, say), "macs": cost.macs, "params": cost.params})
    return json.loads(path.read_text())


def first_compressed(
    dense: nn.Module, file: Path | None, cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]
) -> tuple[nn.Module, float | None, list]:
    """The network after the first compression, computed once for all points that begin so; its NMSE and lineage."""
    lineage = list(opened(file, cfg.model.arch)[1]["lineage"]) if file else start_of(cfg)[1]["lineage"]
    step = next((step for step in first_steps(cfg) if step != "train"), None)
    if step is None:
        return dense, None, lineage
    said = meaning(cfg)
    keys = ("checkpoint", "model", "pretraining_seed", "data", *USED[step])
    about = {key: said.get(key) for key in keys}
    path = sweep.shared(f"{step}_{fingerprint(about | {'file': file and file.name})}.pt")
    with made_once(path, say) as missing:
        if missing:
            net, nmse = compressed(dense, step, cfg, data, say)
            lineage = [*lineage, lineage_record(step, cfg, USED[step])]
            norton.save(net, path, metrics={"nmse": nmse}, lineage=lineage)
    net, content = opened(path, cfg.model.arch)
    return net, content["metrics"]["nmse"], content["lineage"]


def spent(
    dense: nn.Module, file: Path | None, cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]
) -> tuple[DictConfig, Choice | None]:
    """The config with the ranks and rates of its budget, chosen once for all points that have it; and the choice."""
    if not has_budget(cfg):
        return cfg, None
    said = meaning(cfg)
    keys = ("checkpoint", "model", "pretraining_seed", "data", "decomposition", "calibration", "pruning", "budget")
    about = {key: said.get(key) for key in keys if key != "pruning" or cfg.budget.joint}
    path = sweep.shared(f"budget_{fingerprint(about | {'file': file and file.name})}.json")
    with made_once(path, say):
        say("choose ranks")
        return spend_budget(dense, cfg, data, path=path, progress=False)


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
