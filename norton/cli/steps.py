"""The steps of the chain as the scripts run them: configuration comes in here and is unpacked here."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor, nn

import norton
from norton.budget.choice import Choice
from norton.budget.choosing import check_feasible
from norton.budget.costs import QUANTITIES, asked_share
from norton.calibration.batchnorm import reestimate_batchnorm_
from norton.checkpoints import verification
from norton.checkpoints.files import read, rebuild
from norton.checkpoints.published_names import parse_name, resembles_name
from norton.checkpoints.verification import Verdict
from norton.cli.program import CONFIGS
from norton.cli.report import millions
from norton.common.errors import InputError
from norton.common.files import write_json
from norton.decomposition.ranks import layer_rules
from norton.deployment.comparing import check_latency_mode
from norton.graph import wiring_of
from norton.graph.layers import is_decomposed, width
from norton.graph.plan import plan_of
from norton.graph.wiring import OUTPUT
from norton.measure.counting import Complexity, complexity, percent_removed
from norton.models import build
from norton.models.foreign import OPEN, is_path
from norton.pruning import asks_for, check_prune, spared
from norton.pruning.allocation import read_rates

RECIPES = {"train": "pretraining", "finetune": "training"}  # the config group of each step that trains


def plain(value: Any) -> Any:
    """A config value as plain data."""
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, (DictConfig, ListConfig)) else value


def open_network(cfg: DictConfig, *, told: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """The network of `checkpoint=`, or a fresh one of `model=`, and the checkpoint's metrics and lineage.

    told: rank and rates of the config describe the network in the file, rather than what to do with it.
    """
    if cfg.checkpoint is not None:
        content = read(cfg.checkpoint)
        description = {"rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)} if told else {}
        net = rebuild(content, cfg.checkpoint, arch=cfg.model.arch, **description)
        return net, {"metrics": content.get("metrics", {}), "lineage": list(content.get("lineage", []))}
    if cfg.model.arch is None:
        raise InputError("no network: give checkpoint=FILE, or model=NAME for one with random weights")
    torch.manual_seed(cfg.seed)
    return build_model(cfg, 0, plain(cfg.model.get("compress_rate"))), {"metrics": {}, "lineage": []}


def build_model(cfg: DictConfig, rank=0, compress_rate=None) -> nn.Module:
    """The network of `model=`, of that rank and rates."""
    m = cfg.model
    return build(m.arch, rank, compress_rate, m.num_classes, plain(m.get("input_size")))


def dense_form(net: nn.Module) -> nn.Module:
    """The dense network that one was made from, with random weights."""
    options = {"input_size": net.input_size} if is_path(net.arch) else {}
    return build(net.arch, num_classes=net.num_classes, **options)


def inherited(origin: dict[str, Any]) -> dict[str, Any]:
    """What a compressed network keeps of the metrics of the one it came from: the data they are about."""
    return {key: value for key, value in origin["metrics"].items() if key == "data"}


def open_data(cfg: DictConfig):
    """The LightningDataModule of `data=`; its files are looked for at the first use."""
    from norton.data.datamodule import ClassificationData  # Lightning takes seconds to import

    try:
        return ClassificationData(**plain(cfg.data))
    except TypeError as error:
        raise InputError(f"data={cfg.data.get('name')}: {error}") from None


def choose_data(cfg: DictConfig, name: str) -> None:
    """Put the dataset `name` in the place of `data=auto`, in the config itself; other choices of a user stay."""
    if cfg.data.name != "auto":
        return
    known = {path.stem: path for path in sorted((CONFIGS / "data").glob("*.yaml")) if path.stem != "auto"}
    if name is None:
        raise InputError(f"nothing says which data its accuracy is about; choose data= out of {', '.join(known)}")
    if name not in known:
        choices = ", ".join(known)
        raise InputError(f"its accuracy is about {name!r}, which is none of the data here: {choices}; choose data=")
    told = {key: value for key, value in cfg.data.items() if value is not None and key != "name"}
    cfg.data = OmegaConf.merge(OmegaConf.load(known[name]), told)


def check_classes(net: nn.Module, data) -> None:
    """Raise InputError where the data have other classes than the network."""
    if getattr(net, "num_classes", data.num_classes) != data.num_classes:
        number = f"only {data.num_classes}" if data.num_classes < net.num_classes else f"{data.num_classes}"
        raise InputError(
            f"the network tells {net.num_classes} classes apart, the data {data.name} have {number}; "
            "choose another data= or data.root=, or another checkpoint="
        )


def check_settings(cfg: DictConfig) -> None:
    """Raise InputError for settings that would be found bad only after hours of work."""
    whole(cfg, "seed", 0)
    if (split := OmegaConf.select(cfg, "split")) not in (None, "test", "val"):
        raise InputError(f"split is {split!r}; choose one of test, val")
    for name, least in (("latency_batch", 1), ("calibration.images", 2), ("calibration.batch_size", 2)):
        if OmegaConf.select(cfg, name) is not None:
            whole(cfg, name, least)
    if "latency" in cfg:
        check_latency_mode(cfg.latency)
    if OmegaConf.select(cfg, "calibration") is not None:
        calibration(cfg)
    for name in ("pretraining", "training"):
        if OmegaConf.select(cfg, name) is not None:
            recipe(cfg[name], name)
    check_budget(cfg)


def has_budget(cfg: DictConfig) -> bool:
    """Whether ranks are to be chosen for a budget."""
    return any(OmegaConf.select(cfg, f"budget.{what}") is not None for what in QUANTITIES)


def is_joint(cfg: DictConfig) -> bool:
    """Whether rates are to be chosen for a budget too."""
    return has_budget(cfg) and bool(cfg.budget.joint)


def check_budget(cfg: DictConfig) -> None:
    """Raise InputError for a budget that is none, or beside what it is to choose."""
    if not isinstance(given := plain(cfg.get("budget", {})), dict):
        raise InputError(f"budget is {given!r}; give the share to keep of one thing, e.g. choice.macs=0.4")
    joint = OmegaConf.select(cfg, "budget.joint")
    if joint is not None and not isinstance(joint, bool):
        raise InputError(f"budget.joint is {joint!r}; it is true or false")
    if not has_budget(cfg):
        if joint:
            raise InputError("budget.joint without a budget; give the share to keep, e.g. choice.macs=0.4")
        return
    what, _ = asked_share(cfg.budget.macs, cfg.budget.params)
    if cfg.rank is not None:
        raise InputError(f"both rank and budget.{what} are given, which chooses the ranks; leave one out")
    if joint and cfg.compress_rate is not None:
        raise InputError("both compress_rate and choice.joint are given, which chooses the rates; leave one out")
    if joint and "pruning" not in cfg:
        raise InputError("budget.joint needs a step that prunes; use python -m experiments.pipeline")
    if (chain := OmegaConf.select(cfg, "steps")) is None:
        return
    for step in ["decompose", *["prune"] * bool(joint)]:
        if list(chain).count(step) != 1:
            raise InputError(f"a budget needs {step} once among the steps, which are {', '.join(chain)}")
    if "prune" in chain and list(chain).index("prune") < list(chain).index("decompose"):
        raise InputError("a budget is spent on the network before it is pruned; put decompose before prune in steps=")


def check_latency_batch(cfg: DictConfig, data) -> None:
    """Raise InputError where the test split has too few images to measure latency with."""
    if cfg.latency_batch is not None and len(data.splits.test) < cfg.latency_batch:
        raise InputError(
            f"latency_batch is {cfg.latency_batch}; the test split of {data.name} has {len(data.splits.test)} images"
        )


def require(cfg: DictConfig, step: str) -> None:
    """Raise InputError where a step lacks what it is about."""
    if step == "decompose" and cfg.rank is None and not has_budget(cfg):
        raise InputError("no rank: give rank=N, or a rank per layer pattern such as 'rank={layer1.*: 2, layer2.*: 3}'")
    if step == "prune":
        if cfg.compress_rate is None and plain(cfg.pruning.criterion) != "index" and not is_joint(cfg):
            instead = ", or choice.joint=true, or leave prune out of steps=" if has_budget(cfg) else ""
            raise InputError(f"no rates: give compress_rate=RATES, e.g. compress_rate=[0.]+[0.4]*29{instead}")
        if cfg.compress_rate is not None:
            read_rates(plain(cfg.compress_rate))


def check_fit(net: nn.Module, cfg: DictConfig, step: str) -> None:
    """Raise InputError where ranks or rates do not fit the network, before anything is written."""
    require(cfg, step)
    if step == "decompose" and cfg.rank is None:
        check_feasible(net, **budget_options(cfg))
    elif step == "decompose" and not leaves_dense(cfg):
        layer_rules(net, plain(cfg.rank), plain(cfg.decomposition.skip), cfg.decomposition.method)
    if step == "prune":
        rates = {"*": 0.0} if is_joint(cfg) and cfg.compress_rate is None else plain(cfg.compress_rate)
        check_prune(net, rates, **plain(cfg.pruning))


def budget_options(cfg: DictConfig) -> dict[str, Any]:
    """What `norton.choose_ranks` is asked for, but images and how they are used."""
    b, d = cfg.budget, cfg.decomposition
    asked = {"macs": b.macs, "params": b.params, "joint": bool(b.joint), "method": d.method, "skip": plain(d.skip)}
    return asked | ({"pruning": plain(cfg.pruning)} if b.joint else {})


def leaves_dense(cfg: DictConfig) -> bool:
    """Whether a budget was spent without any rank: on pruning alone."""
    return has_budget(cfg) and cfg.rank is not None and not any(rank is not None for rank in cfg.rank.values())


def spend_budget(
    net: nn.Module, cfg: DictConfig, data=None, *, path: Path | None = None, progress: bool = True
) -> tuple[DictConfig, Choice]:
    """The config with the ranks, and rates, that its budget buys for a network; and the choice.

    path: a file that keeps it, from which it is taken where it lies there.
    """
    if path is not None and path.exists():
        choice = Choice.from_dict(json.loads(path.read_text()))
    else:
        d, options = cfg.decomposition, budget_options(cfg)
        if cfg.budget.joint:
            options["pruning"] = pruning_options(net, cfg, data)
        choice = norton.choose_ranks(
            net,
            calibration_images(net, cfg, data),
            **options,
            objective=d.objective,
            calibration=calibration(cfg),
            seed=d.seed,
            progress=progress,
            **(plain(d.options) or {}),
        )
        if path is not None:
            write_json(path, choice.as_dict())
    cfg = cfg.copy()
    cfg.rank = choice.ranks
    if cfg.budget.joint:
        cfg.compress_rate = choice.rates
    return cfg, choice


def setting_text(cfg: DictConfig) -> str:
    """What is asked of ranks in a few words, e.g. `rank 3`, `40% of MACs`."""
    if not has_budget(cfg):
        return f"rank {plain(cfg.rank)}"
    what, share = asked_share(cfg.budget.macs, cfg.budget.params)
    return f"{100 * share:g}% of {QUANTITIES[what]}" + ", jointly" * is_joint(cfg)


def rates_text(cfg: DictConfig) -> str:
    """The rates, or that they are chosen."""
    return "chosen" if is_joint(cfg) else str(plain(cfg.compress_rate))


def recipe(settings: DictConfig, name: str = "training"):
    """The `Recipe` of a config group, which may also name a teacher."""
    from norton.training import Recipe

    known, settings = ", ".join([*(field.name for field in fields(Recipe)), "teacher"]), plain(settings)
    if not isinstance(settings, dict):
        raise InputError(f"{name}: {settings!r} is not a recipe; its settings are {known}")
    if (teacher := settings.get("teacher")) is not None and not isinstance(teacher, str):
        raise InputError(f"{name}.teacher is {teacher!r}; give the path of a checkpoint, or null for the dense network")
    if teacher is not None and not settings.get("distill"):
        raise InputError(f"{name}.teacher={teacher} has nobody to teach; {name}.distill=true lets it")
    try:
        return Recipe(**{key: value for key, value in settings.items() if key != "teacher"})
    except TypeError as error:
        raise InputError(f"{name}: not a recipe ({error}); its settings are {known}") from None


def whole(cfg: DictConfig, name: str, least: int) -> None:
    """Raise InputError where a setting is no whole number of at least `least`."""
    value = OmegaConf.select(cfg, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")


def trainer_options(cfg: DictConfig) -> dict[str, Any]:
    """The Lightning Trainer's settings that are a user's.  Raises InputError for those that follow from others."""
    instead = {"max_epochs": "training.epochs", "gradient_clip_val": "training.gradient_clip", "logger": "logger"}
    options = plain(cfg.trainer)
    for name, setting in instead.items():
        if name in options:
            raise InputError(f"trainer.{name} follows from {setting}; set that")
    if "callbacks" in options:
        raise InputError("trainer.callbacks is what a training sets itself; leave it out")
    return options


def device(name: str) -> torch.device:
    """The device that a user names; auto: a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        raise InputError(f"device is {name!r}, which torch does not find here; choose cpu, cuda or auto") from None


def decompose(net: nn.Module, cfg: DictConfig, data=None, *, progress: bool = True) -> nn.Module:
    """`norton.decompose` as configured, with calibration images where its objective asks for them."""
    require(cfg, "decompose")
    if leaves_dense(cfg):
        return copy.deepcopy(net)
    d = cfg.decomposition
    options = plain(d.options) or {}
    if d.objective == "outputs":
        options |= {"images": calibration_images(net, cfg, data), "calibration": calibration(cfg)}
    return norton.decompose(
        net,
        plain(cfg.rank),
        method=d.method,
        skip=plain(d.skip),
        seed=d.seed,
        objective=d.objective,
        progress=progress,
        **options,
    )


def output_errors(net: nn.Module, small: nn.Module, cfg: DictConfig, data=None) -> dict[str, float]:
    """Of the layers decomposed for outputs, on the calibration images; empty for other objectives."""
    images = calibration_images(net, cfg, data) if cfg.decomposition.objective == "outputs" else None
    return {} if images is None else norton.decomposition.output_errors(net, small, images)


def calibration(cfg: DictConfig) -> norton.Calibration:
    """How calibration images are used, as configured."""
    settings = plain(cfg.calibration)
    if not isinstance(settings, dict):
        raise InputError(f"calibration is {settings!r}; its settings are given one by one, e.g. calibration.images=512")
    if not isinstance(settings["batchnorm"], bool):
        raise InputError(f"calibration.batchnorm is {settings['batchnorm']!r}; it is true or false")
    fields_of = {field.name for field in fields(norton.Calibration)}
    try:
        return norton.Calibration(**{key: value for key, value in settings.items() if key in fields_of})
    except InputError as error:
        raise InputError(f"calibration.{error}") from None


def calibration_images(net: nn.Module, cfg: DictConfig, data=None) -> Tensor | None:
    """Unlabelled images, transformed as for evaluation: of a folder, or training images; None where there are none."""
    c, dtype = cfg.calibration, next(net.parameters()).dtype
    if c.folder is not None:
        from norton.data.pictures import read_pictures

        images = read_pictures(c.folder, net.input_size, cfg.data.name, c.images)
        if len(images) < 2:
            raise InputError(f"calibration.folder: {c.folder} holds {len(images)} image; give a few hundred")
        return images.to(dtype)
    if c.images is None:
        return None
    return (open_data(cfg) if data is None else data).calibration_images(c.images).to(dtype)


def prune(net: nn.Module, cfg: DictConfig, data=None, *, progress: bool = True) -> nn.Module:
    """`norton.prune` as configured, with calibration images where the criterion or compensation asks for them.

    A criterion takes training images of `data`, with labels where it asks for them; compensation then takes the same.
    """
    check_fit(net, cfg, "prune")
    options = pruning_options(net, cfg, data)
    if options["compensate"]:
        images = options.get("images")
        images = calibration_images(net, cfg, data) if images is None else images
        options |= {"images": images, "calibration": calibration(cfg)}
    return norton.prune(net, plain(cfg.compress_rate), progress=progress, **options)


def pruning_options(net: nn.Module, cfg: DictConfig, data=None) -> dict[str, Any]:
    """The settings of `norton.prune` as configured, with the images and labels that the criterion asks for."""
    options = plain(cfg.pruning)
    needs_images, needs_labels = asks_for(options["criterion"])
    if needs_images:
        data = open_data(cfg) if data is None else data
        check_classes(net, data)
        images, labels = data.calibration_batch(cfg.calibration.images)
        options |= {"images": images, "labels": labels if needs_labels else None}
    return options


def calibrate_(net: nn.Module, cfg: DictConfig, data=None) -> nn.Module:
    """Re-estimate BatchNorm as configured, in place."""
    images = calibration_images(net, cfg, data) if cfg.calibration.batchnorm else None
    if images is not None:
        reestimate_batchnorm_(net, images, cfg.calibration.batch_size)
    return net


def fit(
    net: nn.Module, cfg: DictConfig, group: str, data, folder: Path, *, dense: nn.Module | None = None, **options
) -> nn.Module:
    """Train by the recipe of a config group; state and logs go to `folder`.

    dense: the network that teaches where the recipe distills and names no other.  options: more of
    `norton.training.fit`.
    """
    from norton.training import fit as train

    options = {**trainer_options(cfg), **options}
    options.setdefault("loggers", loggers(cfg))
    if distills(cfg[group]):
        file = cfg[group].get("teacher")
        options["teacher"] = dense if file is None else norton.load(file)
    return train(net, data, recipe(cfg[group], group), folder=folder, seed=cfg.seed, **options)


def distills(settings: DictConfig) -> bool:
    """Whether training by a config group has a teacher."""
    return bool(settings.epochs and settings.get("distill"))


def can_teach(net: nn.Module, lineage: Sequence[Mapping[str, Any]], *, opened: bool) -> bool:
    """Whether a network is a dense one that was trained, so that those made of it can learn from it.

    lineage: the records of the steps behind it.  opened: from a file, which published ones are without a lineage.  What
    was built narrow and trained is dense too, although it has a plan.
    """
    done = {record.get("step") for record in lineage}
    return not done & {"decompose", "prune"} and ("train" in done or (opened and not plan_of(net)))


def check_teachers(
    net: nn.Module, lineage: Sequence[Mapping[str, Any]], cfg: DictConfig, chain: Sequence[str], data
) -> None:
    """Raise InputError, before any work, where a step of a chain from `net` will have no teacher, or an unfit one."""
    found = False
    for number, step in enumerate(chain):
        done = [*lineage, *({"step": step} for step in chain[:number])]
        found = found or can_teach(net, done, opened=cfg.checkpoint is not None)
        group = RECIPES.get(step)
        if group is None or not distills(cfg[group]):
            continue
        if (file := cfg[group].get("teacher")) is not None:
            if (classes := norton.load(file).num_classes) != data.num_classes:
                raise InputError(
                    f"{group}.teacher={file} tells {classes} classes apart, the data {data.name} have "
                    f"{data.num_classes}; choose another"
                )
        elif not found:
            raise InputError(
                f"{group}.distill=true, and there is no dense network to learn from before the step {step}: what the "
                f"chain starts from is compressed or untrained; name one with {group}.teacher=FILE"
            )


def loggers(cfg: DictConfig) -> list:
    """The Lightning loggers of `logger=`."""
    from hydra.utils import instantiate

    return [instantiate(logger) for logger in cfg.logger.values()] if cfg.logger else []


def evaluate(net: nn.Module, cfg: DictConfig, data, split: str = "test") -> dict[str, float]:
    """Accuracies in percent, on one device."""
    from norton.training import evaluate as measure

    check_classes(net, data)
    options = {**trainer_options(cfg), "devices": 1, "num_nodes": 1, "strategy": "auto"}
    return measure(net, data, split=split, **options)


@dataclass(frozen=True)
class Verification:
    """A checkpoint with what it claims and what was measured.

    last_step: of its lineage.  notes: where its name and its file disagree.  data, accuracy: None where the data could
    not be had, as the verdict says.
    """

    net: nn.Module
    cost: Complexity
    split: str
    last_step: str | None
    claims: dict[str, verification.Claim]
    notes: list[str]
    verdict: Verdict
    data: Any = None
    accuracy: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "arch": self.net.arch,
            "data": self.data and self.data.name,
            "split": self.split,
            "last_step": self.last_step,
            **(self.accuracy or {}),
            "macs": self.cost.macs,
            "params": self.cost.params,
            "claims": self.claims,
            "notes": self.notes,
            "verdict": self.verdict.text,
            "verdict_code": self.verdict.code,
        }


def verify(cfg: DictConfig, entry: dict[str, Any] | None = None) -> Verification:
    """Measure `checkpoint=` on `data=` and judge what it claims; entry: of a registry, which claims too.

    With data=auto, on the data that the claim is about; where those cannot be had, the counts alone are judged.
    """
    content = read(cfg.checkpoint)
    told = {"arch": cfg.model.arch, "rank": plain(cfg.rank), "compress_rate": plain(cfg.compress_rate)}
    net = rebuild(content, cfg.checkpoint, **told).float()  # a file in half precision meets float32 images
    claimed, lies, notes, unread = collect_claims(cfg.checkpoint, content, net, entry)
    cost = complexity(net)
    measured: dict[str, Any] = {"macs": cost.macs, "params": cost.params}
    about = next((claim["data"] for claim in claimed.values() if "data" in claim), getattr(net, "dataset", None))
    automatic = cfg.data.name == "auto"
    trained = content.get("lineage") or [{}]
    found = {"net": net, "cost": cost, "split": cfg.split, "last_step": trained[-1].get("step"), "claims": claimed}
    try:
        choose_data(cfg, about)
        data = open_data(cfg)
        accuracy = evaluate(net, cfg, data, cfg.split)
    except InputError as error:
        if not automatic:
            raise
        verdict = verification.judge(
            claimed, measured, lies=lies, missing="; ".join(filter(None, (unread, str(error))))
        )
        return Verification(**found, notes=notes, verdict=verdict)
    missing, about = unread, about or data.name
    if cfg.split == "test":
        # Whoever claims an accuracy without saying on what means the data that the file is about.
        claimed = {source: {"data": about, **claim} for source, claim in claimed.items()}
        measured |= {**accuracy, "data": data.name}
    if cfg.split != "test" or data.name != about:
        missing = f"the claim is about {about}, test; this is {data.name}, {cfg.split}"
    verdict = verification.judge(claimed, measured, lies=lies, missing=missing)
    return Verification(**found, data=data, accuracy=accuracy, notes=notes, verdict=verdict)


def collect_claims(
    path: str, content: dict[str, Any], net: nn.Module, entry: dict[str, Any] | None
) -> tuple[dict[str, verification.Claim], list[str], list[str], str]:
    """Source → claim; what the name says wrongly of the network; notes for people; why the name cannot be read."""
    found, lies, unread = {"file": verification.of_file(content, path)}, [], ""
    try:
        name = parse_name(path)
    except InputError as error:
        name, unread = None, str(error)
    if name:
        lies = verification.disagreements(name, net)
        found["name"] = {"top1": name.top1} if lies else verification.of_name(name, net.num_classes)
    if entry:
        found["registry"] = verification.of_registry(entry)
    notes = [f"{lie}; the file counts" for lie in lies]
    if unread and resembles_name(path):
        notes.append(f"{unread}; the name is left out of account")
    if name and abs(found["file"].get("top1", name.top1) - name.top1) > verification.TOLERANCE:
        notes.append("the file and its name claim different accuracies; both are held against what is measured")
    return {source: claim for source, claim in found.items() if claim}, lies, notes, unread


def evaluation(net: nn.Module, path: Path) -> str:
    """The command that evaluates a checkpoint; a constructor of the user's own has to be named again."""
    arch = getattr(net, "arch", None)
    named = f" model.arch={arch}" if arch is not None and is_path(arch) and not arch.startswith(OPEN) else ""
    return f"python evaluate.py checkpoint={path}{named}"


def lineage_record(step: str, cfg: DictConfig, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a checkpoint remembers of the step that made it; teacher: that it learned from, if any."""
    settings = {key: plain(cfg[key]) for key in keys}
    if has_budget(cfg) and step in ("decompose", "prune"):
        settings["budget"] = plain(cfg.budget)
    for group in set(keys) & set(RECIPES.values()):
        if distills(cfg[group]):
            settings["teacher"] = cfg[group].get("teacher") or "the dense network"
    return {"step": step, **settings, "norton": norton.__version__, "torch": str(torch.__version__)}


def cost_row(cost: Complexity, dense: Complexity) -> dict[str, Any]:
    """MACs and parameters as columns of a table, with what was removed against the dense network."""
    return {
        "MACs": millions(cost.macs),
        "MACs removed %": percent_removed(cost.macs, dense.macs),
        "params": millions(cost.params),
        "params removed %": percent_removed(cost.params, dense.params),
    }


def dense_cost(net: nn.Module, convention: str = "norton", input_size=None) -> Complexity:
    """The cost of the dense network that `net` came from."""
    dense = build(net.arch, num_classes=net.num_classes)
    return complexity(dense, input_size or net.input_size, convention=convention)


def macs_panel(net: nn.Module, cost: Complexity) -> dict[str, dict[str, int]]:
    """A panel for `layer_picture`: the MACs of convolutions and linear layers; the others are many and small."""
    layers = {name: net.get_submodule(name) for name in cost.by_layer}
    shown = [name for name, layer in layers.items() if is_decomposed(layer) or isinstance(layer, nn.Conv2d | nn.Linear)]
    return {"MACs": {name: cost.by_layer[name].macs for name in shown}}


def rank_text(rank: int | tuple[int, ...]) -> int | str:
    """A rank as a cell of a table shows it: several as `16, 32`."""
    return rank if isinstance(rank, int) else ", ".join(map(str, rank))


def layer_rows(
    net: nn.Module, small: nn.Module, errors: Mapping[str, float], outputs: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """A row per decomposed layer: rank, NMSE, MACs before and after, and the errors of outputs where they are known."""
    before, after = complexity(net).by_layer, complexity(small).by_layer
    rows = []
    for name, error in errors.items():
        layer = small.get_submodule(name)
        rows.append(
            {
                "layer": name,
                "filters": width(layer),
                "rank": rank_text(layer.rank),
                "NMSE": f"{error:.4f}",
                **({"output error": f"{outputs[name]:.4f}" if name in outputs else "-"} if outputs else {}),
                "MACs before": f"{before[name].macs:,}",
                "MACs after": f"{after[name].macs:,}",
            }
        )
    return rows


def width_rows(net: nn.Module, small: nn.Module) -> list[dict[str, Any]]:
    """A row per channel axis: its layers and the filters before and after."""
    before, rows = wiring_of(net), []
    for axis, writers in before.writers.items():
        each = before.filters(axis)[0]  # of a group, that goes as a whole
        more = f" (+{len(writers) - 1} tied)" if len(writers) > 1 else ""
        layer = small.get_submodule(writers[0])
        kind = f"rank {rank_text(layer.rank)}" if is_decomposed(layer) else "dense"
        rows.append(
            {"layer": writers[0] + more, "kind": kind, "before": each * before.width(axis), "after": width(layer)}
        )
    return rows


def left_whole(net: nn.Module, cfg: DictConfig) -> dict[str, str]:
    """First writer of each channel axis that stays whole → why: it cannot be cut, or the settings spare it."""
    wiring = wiring_of(net)
    return wiring.left_whole | spared(net, wiring, plain(cfg.compress_rate), **plain(cfg.pruning))


def whole_rows(left: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per kind of reason why filters stay, with layers that it is about; the network's output is left out."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for layer, reason in left.items():
        if reason != OUTPUT:
            kinds.setdefault(reason.split(": ")[-1], []).append((layer, reason))
    rows = []
    for found in kinds.values():
        layers, more = [layer for layer, _ in found[:2]], len(found) - 2
        rows.append({"left whole": ", ".join(layers) + f" and {more} more" * (more > 0), "why": found[0][1]})
    return rows
