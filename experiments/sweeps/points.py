"""A point of a sweep: what it means, where its result lies, and how it is measured."""

import functools
import hashlib
import json
import os
import platform
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from torch import nn

import norton
from norton.budget.choice import Choice
from norton.checkpoints.files import read, rebuild
from norton.cli import report, steps
from norton.common.files import write_json
from norton.deployment.deploying import deploy_alike
from norton.graph.layers import is_decomposed
from norton.measure.counting import percent_removed
from norton.measure.latency import latencies
from norton.pruning import describe
from norton.pruning.allocation import read_rates

FORMAT = 1
TUNING = 2  # repeats with which forms are chosen, a few seconds per point
BUDGET = ("budget.macs", "budget.params", "budget.joint")
IN_LABEL = (
    "rank",
    "compress_rate",
    "pruning",
    "pruning.criterion",
    "seed",
    "way",
    *BUDGET,
)  # swept settings it shows anyway
STEPS = ("train", "decompose", "prune", "finetune")
# What cannot change a result: where it is written, what is shown and logged, where things are read and computed.
NO_MEANING = ("out", "name", "shared", "extend", "logger")
NO_MEANING_OF_DATA = ("root", "num_workers", "download")
NO_MEANING_WITHOUT_DISTILLATION = ("distill", "temperature", "distill_weight", "distill_features", "teacher")
NO_MEANING_OF_TRAINER = ("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar")


# What a point means


def meaning(cfg: DictConfig) -> dict[str, Any]:
    """The settings that decide a point's result, as plain data; a checkpoint counts by its content."""
    said = {key: steps.plain(value) for key, value in cfg.items() if key not in NO_MEANING}
    said["data"] = {key: value for key, value in said["data"].items() if key not in NO_MEANING_OF_DATA}
    said["trainer"] = {key: value for key, value in said["trainer"].items() if key not in NO_MEANING_OF_TRAINER}
    if cfg.checkpoint is not None:
        said["checkpoint"] = digest(str(cfg.checkpoint))
    if cfg.compress_rate is not None:
        said["compress_rate"] = read_rates(said["compress_rate"])
    if not steps.has_budget(cfg):
        del said["budget"]
    for group in steps.RECIPES.values():
        if not said[group].get("distill"):
            said[group] = {k: v for k, v in said[group].items() if k not in NO_MEANING_WITHOUT_DISTILLATION}
        elif said[group].get("teacher") is not None:
            said[group]["teacher"] = digest(said[group]["teacher"])
    if said["latency"] == "eager" or cfg.latency_batch is None:
        del said["latency"]  # as in sweeps from before there was a choice
    if said["training"].get("epochs") == 0:
        said["training"] = {"epochs": 0}
    about = {
        "train": ("pretraining",),
        "decompose": ("decomposition", "rank"),
        "prune": ("pruning", "compress_rate"),
        "finetune": ("training",),
    }
    if cfg.checkpoint is not None and "train" not in said["steps"]:
        del said["pretraining_seed"]  # else it decides the random weights to start from
    for step, keys in about.items():
        if step not in said["steps"]:
            said = {key: value for key, value in said.items() if key not in keys}
    return said


def identity(about: Mapping[str, Any]) -> str:
    """A short name for plain data, the same on every machine."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def digest(path: str) -> str:
    """The SHA-256 of a checkpoint.  Raises InputError where there is none."""
    if not Path(path).is_file():
        raise norton.InputError(f"no checkpoint at {path}; give the path of a file written by norton.save or published")
    status = os.stat(path)
    return _digest(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _digest(path: str, changed: int, size: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(cfg: DictConfig) -> None:
    """Raise InputError for settings that a point would stumble over."""
    steps.check_settings(cfg)
    steps.whole(cfg, "pretraining_seed", 0)
    if cfg.latency_batch is not None:
        steps.whole(cfg, "repeats", 1)
    if not cfg.steps or (unknown := [step for step in cfg.steps if step not in STEPS]):
        what = f"unknown step {unknown[0]!r}" if cfg.steps else "no steps"
        raise norton.InputError(f"{what}; give e.g. steps=[decompose,prune,finetune] out of {', '.join(STEPS)}")
    for step in cfg.steps:
        steps.require(cfg, step)
    if "train" in cfg.steps[1:]:
        raise norton.InputError("steps: train comes first; what is trained after a compression is `finetune`")
    if cfg.checkpoint is None and cfg.model.arch is None:
        raise norton.InputError("no network: give checkpoint=FILE, or model=NAME with steps=[train,decompose,...]")
    if cfg.trainer.devices not in ("auto", 1) or cfg.trainer.num_nodes != 1:
        raise norton.InputError(
            "a point of a sweep computes on one device; use several at once with hydra/launcher=joblib or "
            "submitit_slurm, or train a single network on them with experiments.pipeline"
        )


# Where results lie


class Sweep(NamedTuple):
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


# How a point is measured


def run(cfg: DictConfig, overrides: list[str]) -> str:
    """Measure one point and write its record: done, failed, or elsewhere if another process is at it.

    Raises InputError where the record cannot be written, and where the sweep does not know the point.
    """
    sweep, point = sweep_of(cfg), identity(meaning(cfg))
    label = read_index(sweep)["points"].get(point, {}).get("label")
    if label is None:
        raise norton.InputError(f"a config or a checkpoint was changed while {sweep.folder} ran; start it again")
    try:
        with sweep.lock(point, timeout=2):  # whoever tidies up holds it for a moment
            if _done(sweep.result(point)):  # by another process, since this one made its plan
                return "done"
            return _run(cfg, overrides, sweep, point, label)
    except Timeout:
        return "elsewhere"


def _run(cfg: DictConfig, overrides: list[str], sweep: Sweep, point: str, label: str) -> str:
    clock = Clock(sweep.running(point), {"point": point, "label": label, "host": socket.gethostname()})
    record = {
        "format": FORMAT,
        "point": point,
        "label": label,
        "overrides": overrides,
        "meaning": meaning(cfg),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "versions": {
            "norton": norton.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "machine": report.machine(torch.device("cpu")),
    }
    try:
        clock.say("start")
        record |= {"status": "done", "result": measure(cfg, sweep, point, clock.say)}
    except Exception as error:  # whatever it is, the other points go on
        record |= {"status": "failed", **_told(error)}
    finally:
        clock.stop()
    write_json(sweep.result(point), record | {"seconds": clock.total, "seconds_by_stage": clock.stages})
    if record["status"] == "done":
        shutil.rmtree(sweep.training(point), ignore_errors=True)
    return record["status"]


def _told(error: Exception) -> dict[str, str | None]:
    if isinstance(error, norton.InputError):
        return {"error": str(error), "traceback": None}
    return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


class Clock:
    """Says in a file what a point is at, for whoever shows it, and keeps how long each stage took."""

    def __init__(self, path: Path, about: Mapping[str, Any]):
        self.path, self.about, self.stages = path, about, {}
        self.started = self.since = time.time()
        self.stage = "start"

    def say(self, text: str) -> None:
        """Begin a stage; what follows a colon is a detail of it."""
        self._add()
        self.stage = text.split(":")[0]
        write_json(self.path, {**self.about, "stage": text, "started": self.started})

    def stop(self) -> None:
        self._add()
        self.path.unlink(missing_ok=True)

    @property
    def total(self) -> float:
        return self.since - self.started

    def _add(self) -> None:
        now = time.time()
        self.stages[self.stage] = self.stages.get(self.stage, 0.0) + now - self.since
        self.since = now


def _done(path: Path) -> bool:
    try:
        record = read_result(path)
    except ValueError:
        return False
    return record is not None and record["status"] == "done"


def short_label(cfg: DictConfig) -> str:
    """A point in a few words."""
    words = []
    if "decompose" in cfg.steps:
        words.append(steps.setting_text(cfg))
    if "prune" in cfg.steps:
        words.append(f"{describe(cfg.pruning)} {steps.rates_text(cfg)}")
    return ", ".join([*words, f"seed {cfg.seed}"])


def measure(cfg: DictConfig, sweep: Sweep, point: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Compress as configured, and measure the network beside the one it came from."""
    check(cfg)
    cfg = cfg.copy()
    cfg.trainer.update(enable_progress_bar=False, devices=1)
    with open_loggers(cfg, point) as loggers:
        found = _measure(cfg, sweep, point, say, loggers)
        for logger in loggers:
            logger.log_hyperparams({"point": meaning(cfg)})
            logger.log_metrics(
                {f"point/{key}": value for key, value in found.items() if isinstance(value, int | float)}
            )
        return found


def _measure(cfg: DictConfig, sweep: Sweep, point: str, say: Callable[[str], None], loggers: list) -> dict[str, Any]:
    data = _data(json.dumps(steps.plain(cfg.data), sort_keys=True))
    steps.check_latency_batch(cfg, data)
    net, origin = _opened(cfg)
    steps.check_teachers(net, origin["lineage"], cfg, cfg.steps, data)
    dense, dense_file = start_network(cfg, data, sweep, say)
    for step in cfg.steps:
        steps.check_fit(dense, cfg, step)
    whole = dense_measures(dense, dense_file, cfg, data, sweep, say)
    cfg, choice = spent(dense, dense_file, cfg, data, sweep, say)
    net, nmse, lineage = first_compressed(dense, dense_file, cfg, data, sweep, say)
    before = None
    for number, step in enumerate(cfg.steps[len(first_steps(cfg)) :]):
        if step != "finetune":
            net, error = compressed(net, step, cfg, data, say)
            nmse = error if error is not None else nmse
        elif cfg.training.epochs:
            before = before or accuracy(net, cfg, data, say)
            net = fine_tuned(net, dense, cfg, data, sweep.training(point) / f"{number}", say, loggers)
        else:
            continue
        lineage = [*lineage, steps.lineage_record(step, cfg, USED[step])]
    after = accuracy(net, cfg, data, say)
    say("count")
    cost = norton.complexity(net)
    found = {
        "arch": dense.arch,
        "data": data.name,
        "split": cfg.split,
        **after,
        "top1_before": (before or after)["top1"],
        "nmse": nmse,
        "macs": cost.macs,
        "params": cost.params,
        "macs_removed_percent": percent_removed(cost.macs, whole["macs"]),
        "params_removed_percent": percent_removed(cost.params, whole["params"]),
        "dense": whole,
    }
    if choice:
        found["budget"] = choice.as_dict()
    if cfg.latency_batch is not None:
        say("latency")
        images = data.images("test", cfg.latency_batch)
        nets = deploy_alike({"dense": dense, "point": net}, images, cfg.latency, repeats=TUNING)
        times = latencies(nets, images, repeats=cfg.repeats)
        found |= {
            "latency_ms": times["point"].milliseconds,
            "latency_form": times["point"].form,
            "dense_latency_ms": times["dense"].milliseconds,
        }
    if cfg.training.epochs and "finetune" in cfg.steps:
        say("save")
        claims = {"data": data.name, "macs": cost.macs, "params": cost.params, **(after if cfg.split == "test" else {})}
        norton.save(net, sweep.network(point), metrics=claims, lineage=lineage)
        found["checkpoint"] = sweep.network(point).name
    return found


USED = {
    "train": ("pretraining", "data", "pretraining_seed"),
    "decompose": ("rank", "decomposition", "calibration"),
    "prune": ("compress_rate", "pruning", "calibration"),
    "finetune": ("training", "data", "seed"),
}


@contextmanager
def open_loggers(cfg: DictConfig, point: str) -> Iterator[list]:
    """The loggers of a point, each with a name of its own in the sweep's folder; wandb groups the points of a sweep."""
    for name, logger in (cfg.logger or {}).items():
        own = {"save_dir": f"{cfg.out}/logs"}
        own |= {"csv": {"name": point}, "wandb": {"name": short_label(cfg), "group": cfg.name}}.get(name, {})
        for key, value in own.items():
            OmegaConf.update(logger, key, value, force_add=True)
    loggers = steps.loggers(cfg)
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.save()
            logger.finalize("success")
            if hasattr(logger.experiment, "finish"):  # wandb's run, which the next point would go on with
                logger.experiment.finish()


@functools.lru_cache(maxsize=2)
def _data(settings: str):
    """The data of a point, kept for the next: making or reading them takes longer than many a point."""
    return steps.open_data(OmegaConf.create({"data": json.loads(settings)}))


def accuracy(net: nn.Module, cfg: DictConfig, data, say: Callable[[str], None]) -> dict[str, float]:
    say(f"accuracy: {cfg.split}")
    return steps.evaluate(net, cfg, data, cfg.split)


def compressed(
    net: nn.Module, step: str, cfg: DictConfig, data, say: Callable[[str], None]
) -> tuple[nn.Module, float | None]:
    """A network after one step of compression, and the NMSE of a decomposition."""
    say(step)
    if step == "decompose":
        small = steps.decompose(net, cfg, data, progress=False)
    else:
        small = steps.prune(net, cfg, data, progress=False)
    error = norton.nmse(net, small) if step == "decompose" and any(map(is_decomposed, small.modules())) else None
    steps.calibrate_(small, cfg, data)
    return small, error


def fine_tuned(
    net: nn.Module,
    dense: nn.Module,
    cfg: DictConfig,
    data,
    folder: Path,
    say: Callable[[str], None],
    loggers: list,
) -> nn.Module:
    """A network after fine-tuning on batches in the order of the point's seed; dense: from which it may learn."""
    data.splits  # noqa: B018  made by data.seed: all see the same images, augmented alike, each seed in its own order
    seed, data.seed = data.seed, cfg.seed
    try:
        line = epoch_line(say, "fine-tune")
        return steps.fit(net, cfg, "training", data, folder, dense=dense, callbacks=[line], loggers=loggers)
    finally:
        data.seed = seed


def epoch_line(say: Callable[[str], None], what: str):
    """A Lightning callback that says the epoch and the best accuracy so far."""
    from lightning.pytorch.callbacks import Callback

    class Line(Callback):
        def on_train_epoch_start(self, trainer, module) -> None:
            top1 = trainer.callback_metrics.get("val/top1")
            score = "" if top1 is None else f", validation {100 * float(top1):.2f}%"
            say(f"{what}: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}{score}")

    return Line()


# What points share


def first_steps(cfg: DictConfig) -> list[str]:
    """The steps whose result is kept for other points: training the dense network, and the first compression."""
    chain = list(cfg.steps)
    count = int(chain[0] == "train")
    return chain[: count + (chain[count : count + 1] in (["decompose"], ["prune"]))]


def start_network(cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]) -> tuple[nn.Module, Path | None]:
    """The network that the points of a sweep compress, opened or trained, and its file."""
    net, origin = _opened(cfg)
    steps.check_classes(net, data)
    if "train" not in cfg.steps:
        return net, None
    said = meaning(cfg)
    about = {
        key: said.get(key) for key in ("checkpoint", "model", "data", "pretraining", "pretraining_seed", "trainer")
    }
    path = sweep.shared(f"dense_{identity(about)}.pt")
    with made_once(path, say) as missing:
        if missing:
            recipe = cfg.copy()
            recipe.seed = cfg.pretraining_seed
            folder = sweep.training(path.stem)
            line = epoch_line(say, "train dense")
            trained = steps.fit(net, recipe, "pretraining", data, folder, dense=net, callbacks=[line], loggers=[])
            lineage = [*origin["lineage"], steps.lineage_record("train", cfg, USED["train"])]
            norton.save(trained, path, metrics={"data": data.name}, lineage=lineage)
            shutil.rmtree(folder, ignore_errors=True)
    return opened(path)[0], path


def _opened(cfg: DictConfig) -> tuple[nn.Module, dict[str, Any]]:
    if cfg.checkpoint is not None:
        net, content = opened(cfg.checkpoint, cfg.model.arch)
        return net, {"lineage": list(content.get("lineage", []))}
    start = cfg.copy()
    start.seed = cfg.pretraining_seed
    return steps.open_network(start)


def opened(path: str | Path, arch: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
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
    path = sweep.shared(f"measures_{identity(about | {'file': file and file.name})}.json")
    with made_once(path, say) as missing:
        if missing:
            cost = norton.complexity(dense)
            write_json(path, {**accuracy(dense, cfg, data, say), "macs": cost.macs, "params": cost.params})
    return json.loads(path.read_text())


def first_compressed(
    dense: nn.Module, file: Path | None, cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]
) -> tuple[nn.Module, float | None, list]:
    """The network after the first compression, computed once for all points that begin so; its NMSE and lineage."""
    lineage = list(opened(file)[1]["lineage"]) if file else _opened(cfg)[1]["lineage"]
    step = next((step for step in first_steps(cfg) if step != "train"), None)
    if step is None:
        return dense, None, lineage
    said = meaning(cfg)
    keys = ("checkpoint", "model", "pretraining_seed", "data", *USED[step])
    about = {key: said.get(key) for key in keys}
    path = sweep.shared(f"{step}_{identity(about | {'file': file and file.name})}.pt")
    with made_once(path, say) as missing:
        if missing:
            net, nmse = compressed(dense, step, cfg, data, say)
            lineage = [*lineage, steps.lineage_record(step, cfg, USED[step])]
            norton.save(net, path, metrics={"nmse": nmse}, lineage=lineage)
    net, content = opened(path)
    return net, content["metrics"]["nmse"], content["lineage"]


def spent(
    dense: nn.Module, file: Path | None, cfg: DictConfig, data, sweep: Sweep, say: Callable[[str], None]
) -> tuple[DictConfig, Choice | None]:
    """The config with the ranks and rates of its budget, chosen once for all points that have it; and the choice."""
    if not steps.has_budget(cfg):
        return cfg, None
    said = meaning(cfg)
    keys = ("checkpoint", "model", "pretraining_seed", "data", "decomposition", "calibration", "pruning", "budget")
    about = {key: said.get(key) for key in keys if key != "pruning" or cfg.budget.joint}
    path = sweep.shared(f"budget_{identity(about | {'file': file and file.name})}.json")
    with made_once(path, say):
        say("choose ranks")
        return steps.spend_budget(dense, cfg, data, path=path, progress=False)


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
        json.loads(path.read_text()) if path.suffix == ".json" else opened(path)
    except ValueError:  # also InputError
        print(f"{path} is damaged and made again")
        path.unlink(missing_ok=True)
        return False
    return True
