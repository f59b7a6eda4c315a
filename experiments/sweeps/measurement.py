"""How a point of a sweep is measured: run under a lock, recorded whatever happens."""

import json
import platform
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import norton
from experiments.sweeps.chain import PointChain, first_steps
from experiments.sweeps.folder import FORMAT, Sweep, is_done, read_index, sweep_of
from experiments.sweeps.identity import check, fingerprint, meaning, short_label
from experiments.sweeps.shared import kept_data
from norton.cli import opening
from norton.cli.settings import make_loggers
from norton.common.files import write_json
from norton.deployment.comparing import deploy_alike
from norton.measure.counting import percent_removed
from norton.measure.latency import latencies
from norton.measure.machine import describe_machine

TUNING = 2  # repeats with which forms are chosen, a few seconds per point


def run(cfg: DictConfig, overrides: list[str]) -> str:
    """Measure one point and write its record: done, failed, or elsewhere if another process is at it.

    Raises InputError where the record cannot be written, and where the sweep does not know the point.
    """
    sweep, point = sweep_of(cfg), fingerprint(meaning(cfg))
    label = read_index(sweep)["points"].get(point, {}).get("label")
    if label is None:
        raise norton.InputError(f"a config or a checkpoint was changed while {sweep.folder} ran; start it again")
    try:
        with sweep.lock(point, timeout=2):  # whoever tidies up holds it for a moment
            if is_done(sweep.result(point)):  # by another process, since this one made its plan
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
        "machine": describe_machine(torch.device("cpu")),
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
        self.path, self.about = path, about
        self.stages: dict[str, float] = {}
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
    net = None
    if cfg.checkpoint is not None or "size" in cfg.data:  # for the images that it takes, and what it remembers of them
        net, origin = opening.open_network(cfg, new_head=True)
        opening.choose_data(cfg, net, opening.named_by(net, origin) or opening.DIGITS)
    data = kept_data(json.dumps(opening.data_settings(cfg, net), sort_keys=True))
    opening.settle_auto(cfg, data)
    opening.check_latency_batch(cfg, data)
    chain = PointChain(cfg, data, sweep, point, say, loggers)
    dense = chain.dense(chain.start())
    whole = chain.measures(dense)
    choice = chain.spend(dense)
    stage, before = chain.first_compressed(dense), None
    for number, step in enumerate(cfg.steps[len(first_steps(cfg)) :]):
        if step == "finetune":
            if not cfg.training.epochs:
                continue
            before = before or chain.accuracy(stage.net)
        stage = chain.take(stage, step, number)
    after = chain.accuracy(stage.net)
    score, _ = opening.score_of(data)
    say("count")
    cost = norton.complexity(stage.net)
    found = {
        "arch": dense.net.arch,
        "data": data.name,
        "split": cfg.split,
        **after,
        f"{score}_before": (before or after)[score],
        "nmse": stage.nmse,
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
        found |= timed(dense.net, stage.net, data.images("test", cfg.latency_batch), cfg)
    if cfg.training.epochs and "finetune" in cfg.steps:
        say("save")
        claims = {"data": data.name, "macs": cost.macs, "params": cost.params, **(after if cfg.split == "test" else {})}
        norton.save(stage.net, sweep.network(point), metrics=claims, lineage=stage.lineage)
        found["checkpoint"] = sweep.network(point).name
    return found


def timed(dense: nn.Module, net: nn.Module, images: Tensor, cfg: DictConfig) -> dict[str, Any]:
    """The latency of a point's network and of the dense one, in turns, in milliseconds."""
    nets = deploy_alike({"dense": dense, "point": net}, images, cfg.latency, repeats=TUNING)
    times = latencies(nets, images, repeats=cfg.repeats)
    return {
        "latency_ms": times["point"].milliseconds,
        "latency_form": times["point"].form,
        "dense_latency_ms": times["dense"].milliseconds,
    }


@contextmanager
def open_loggers(cfg: DictConfig, point: str) -> Iterator[list]:
    """The loggers of a point, each with a name of its own in the sweep's folder; wandb groups the points of a sweep."""
    for name, logger in (cfg.logger or {}).items():
        own = {"save_dir": f"{cfg.out}/logs"}
        own |= {"csv": {"name": point}, "wandb": {"name": short_label(cfg), "group": cfg.name}}.get(name, {})
        for key, value in own.items():
            OmegaConf.update(logger, key, value, force_add=True)
    loggers = make_loggers(cfg)
    try:
        yield loggers
    finally:
        for logger in loggers:
            logger.save()
            logger.finalize("success")
            if hasattr(logger.experiment, "finish"):  # wandb's run, which the next point would go on with
                logger.experiment.finish()
