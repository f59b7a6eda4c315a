"""Settings of the commands: read from a config, checked before any work."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

import norton
from norton.budget.costs import QUANTITIES, asked_share
from norton.common.checks import check_boolean, check_whole_number
from norton.common.errors import InputError
from norton.deployment.comparing import check_latency_mode
from norton.pruning import Pruning
from norton.pruning.allocation import read_rates

if TYPE_CHECKING:
    from norton.training import Recipe

RECIPES = {"train": "pretraining", "finetune": "training"}  # the config group of each step that trains


def plain(value: Any) -> Any:
    """A config value as plain data; keys are text, also of layers whose name is a number."""
    if not isinstance(value, DictConfig | ListConfig):
        return value
    found = OmegaConf.to_container(value, resolve=True)
    return {str(key): one for key, one in found.items()} if isinstance(found, dict) else found


def check_settings(cfg: DictConfig) -> None:
    """Raise InputError for settings that would be found bad only after hours of work."""
    check_whole(cfg, "seed", 0)
    if (split := OmegaConf.select(cfg, "split")) not in (None, "test", "val"):
        raise InputError(f"split is {split!r}; choose one of test, val")
    for name, least in (("latency_batch", 1), ("calibration.images", 2), ("calibration.batch_size", 2)):
        if OmegaConf.select(cfg, name) is not None:
            check_whole(cfg, name, least)
    if "latency" in cfg:
        check_latency_mode(cfg.latency)
    if OmegaConf.select(cfg, "calibration") is not None:
        calibration(cfg)
    for name in ("pretraining", "training"):
        if OmegaConf.select(cfg, name) is not None:
            recipe(cfg[name], name)
    check_budget(cfg)


def require(cfg: DictConfig, step: str) -> None:
    """Raise InputError where a step lacks what it is about."""
    if step == "decompose" and cfg.rank is None and not has_budget(cfg):
        raise InputError("no rank: give rank=N, or a rank per layer pattern such as 'rank={layer1.*: 2, layer2.*: 3}'")
    if step == "prune":
        if cfg.compress_rate is None and plain(cfg.pruning.criterion) != "index" and not is_joint(cfg):
            instead = ", or budget.joint=true, or leave prune out of steps=" if has_budget(cfg) else ""
            raise InputError(f"no rates: give compress_rate=RATES, e.g. compress_rate=[0.]+[0.4]*29{instead}")
        if cfg.compress_rate is not None:
            read_rates(plain(cfg.compress_rate))


def check_whole(cfg: DictConfig, name: str, least: int) -> None:
    """Raise InputError where a setting is no whole number of at least `least`."""
    check_whole_number(name, OmegaConf.select(cfg, name), least)


def calibration(cfg: DictConfig) -> norton.Calibration:
    """How calibration images are used, as configured."""
    settings = plain(cfg.calibration)
    if not isinstance(settings, dict):
        raise InputError(f"calibration is {settings!r}; its settings are given one by one, e.g. calibration.images=512")
    if settings["batchnorm"] != "auto" and not isinstance(settings["batchnorm"], bool):
        raise InputError(f"calibration.batchnorm is {settings['batchnorm']!r}; use auto, true or false")
    check_whole_number("calibration.held_out", settings["held_out"], 2)
    fields_of = {field.name for field in fields(norton.Calibration)}
    try:
        return norton.Calibration(**{key: value for key, value in settings.items() if key in fields_of})
    except InputError as error:
        raise InputError(f"calibration.{error}") from None


def recipe(settings: DictConfig, name: str = "training") -> "Recipe":
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


def distills(settings: DictConfig) -> bool:
    """Whether training by a config group has a teacher."""
    return bool(settings.epochs and settings.get("distill"))


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


def make_loggers(cfg: DictConfig) -> list:
    """The Lightning loggers of `logger=`."""
    from hydra.utils import instantiate

    return [instantiate(logger) for logger in cfg.logger.values()] if cfg.logger else []


def find_device(name: str) -> torch.device:
    """The device that a user names; auto: a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):  # torch asserts that it was built with CUDA
        raise InputError(f"device is {name!r}, which torch does not find here; choose cpu, cuda or auto") from None


def has_budget(cfg: DictConfig) -> bool:
    """Whether ranks are to be chosen for a budget."""
    return any(OmegaConf.select(cfg, f"budget.{what}") is not None for what in QUANTITIES)


def is_joint(cfg: DictConfig) -> bool:
    """Whether rates are to be chosen for a budget too."""
    return has_budget(cfg) and bool(cfg.budget.joint)


def leaves_dense(cfg: DictConfig) -> bool:
    """Whether a budget was spent without any rank: on pruning alone."""
    return has_budget(cfg) and cfg.rank is not None and not any(rank is not None for rank in cfg.rank.values())


def check_budget(cfg: DictConfig) -> None:
    """Raise InputError for a budget that is none, or beside what it is to choose."""
    if not isinstance(given := plain(cfg.get("budget", {})), dict):
        raise InputError(f"budget is {given!r}; give the share to keep of one thing, e.g. budget.macs=0.4")
    joint = OmegaConf.select(cfg, "budget.joint")
    if joint is not None:
        check_boolean("budget.joint", joint)
    if not has_budget(cfg):
        if joint:
            raise InputError("budget.joint without a budget; give the share to keep, e.g. budget.macs=0.4")
        return
    what, _ = asked_share(cfg.budget.macs, cfg.budget.params)
    if cfg.rank is not None:
        raise InputError(f"both rank and budget.{what} are given, which chooses the ranks; leave one out")
    if joint and cfg.compress_rate is not None:
        raise InputError("both compress_rate and budget.joint are given, which chooses the rates; leave one out")
    if joint and "pruning" not in cfg:
        raise InputError("budget.joint needs a step that prunes, which the command pipeline has")
    if (chain := OmegaConf.select(cfg, "steps")) is None:
        return
    for step in ["decompose", *["prune"] * bool(joint)]:
        if list(chain).count(step) != 1:
            raise InputError(f"a budget needs {step} once among the steps, which are {', '.join(chain)}")
    if "prune" in chain and list(chain).index("prune") < list(chain).index("decompose"):
        raise InputError("a budget is spent on the network before it is pruned; put decompose before prune in steps=")


def budget_options(cfg: DictConfig) -> dict[str, Any]:
    """What `norton.choose_ranks` is asked for, but images and how they are used."""
    b = cfg.budget
    asked = {"macs": b.macs, "params": b.params, "decomposition": decompose_options(cfg)}
    return asked | ({"pruning": pruning_arguments(cfg)} if b.joint else {})


def decompose_options(cfg: DictConfig) -> norton.DecomposeOptions:
    """The settings of the group `decomposition`."""
    settings = plain(cfg.decomposition)
    try:
        return norton.DecomposeOptions(**{**settings, "options": settings["options"] or {}})
    except TypeError as error:
        raise InputError(f"decomposition: {error}") from None


def pruning_arguments(cfg: DictConfig) -> Pruning:
    """The settings of the group `pruning`."""
    settings = plain(cfg.pruning)
    criterion, seed = settings.pop("criterion"), settings.pop("seed")
    try:
        return Pruning(criterion, norton.PruneOptions(**settings), seed=seed)
    except TypeError as error:
        raise InputError(f"pruning: {error}") from None


def setting_text(cfg: DictConfig) -> str:
    """What is asked of ranks in a few words, e.g. `rank 3`, `40% of MACs`."""
    if not has_budget(cfg):
        return f"rank {plain(cfg.rank)}"
    what, share = asked_share(cfg.budget.macs, cfg.budget.params)
    return f"{100 * share:g}% of {QUANTITIES[what]}" + ", jointly" * is_joint(cfg)


def rates_text(cfg: DictConfig) -> str:
    """The rates, or that they are chosen."""
    return "chosen" if is_joint(cfg) else str(plain(cfg.compress_rate))
