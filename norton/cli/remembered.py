"""What a checkpoint remembers of its data, put into the settings of `data=` where the user says nothing else."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch import nn

from norton.cli.program import CONFIGS
from norton.common.errors import warn
from norton.graph.input_sizes import stated_size

NAMES = ("name", "source")  # settings that say which data they are


def datasets() -> dict[str, Path]:
    """Dataset → its YAML."""
    return {path.stem: path for path in sorted((CONFIGS / "data").glob("*.yaml")) if path.stem != "auto"}


def is_told(cfg: DictConfig, key: str) -> bool:
    """Whether the user says this setting of `data=`, rather than the data's YAML."""
    if key in NAMES:
        return False
    yaml = CONFIGS / "data" / f"{_group(cfg)}.yaml"
    own = OmegaConf.load(yaml) if yaml.exists() else {}
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = any(word.lstrip("+").startswith(f"data.{key}=") for word in given)
    return typed or cfg.data[key] != own.get(key)


def recall_(cfg: DictConfig, net: nn.Module) -> None:
    """Fill in, in the config itself, what a network remembers of the data of `data=`, and how it was normalised.

    Code that a file names is not called: a function that makes data or augments must be told again.
    """
    normalisation = getattr(net, "normalisation", None)
    if normalisation is not None and "mean" in cfg.data:
        named = isinstance(cfg.data.mean, str) or isinstance(cfg.data.std, str)  # which stands for both
        for key, part in zip(("mean", "std"), normalisation, strict=True):
            if cfg.data[key] is None and not named:
                cfg.data[key] = list(part)
    found = _remembered(cfg, net)
    if not found:
        return
    if found["name"].partition("/")[2] and cfg.data.name is None:  # data=torchvision without a name
        cfg.data.name = found["name"].partition("/")[2]
    code = [step for step in _steps(found.get("augment")) if "." in step]
    if code and not is_told(cfg, "augment"):
        warn(f"{cfg.checkpoint}: {code[0]}, which augmented its images, is code; data.augment= has it called again")
    for key, value in found.items():
        if key in cfg.data and not is_told(cfg, key) and key not in (*NAMES, "module", *["augment"] * bool(code)):
            cfg.data[key] = value


def problem(cfg: DictConfig, net: nn.Module) -> str:
    """Why the data that a network remembers cannot be had; empty where nothing is known to be in the way."""
    found = _remembered(cfg, net)
    if found.get("module") and cfg.data.module is None:
        return (
            f"its images come from {found['module']}, which this would import and call; if that is code you would run, "
            f"say so with data.module={found['module']}"
        )
    root = found.get("root")
    if root is not None and str(cfg.data.root) == root and not Path(root).is_dir():
        return (
            f"the network was trained on data={_group(cfg)} in {root}, which is no folder here; say where it is now "
            "with data.root=NEW"
        )
    return ""


def _remembered(cfg: DictConfig, net: nn.Module) -> dict[str, Any]:
    """The settings that a network remembers of the data of `data=`, but for a size that it states itself."""
    found = getattr(net, "data_settings", None) or {}
    source, _, within = str(found.get("name")).partition("/")
    if source != _group(cfg) or (within and cfg.data.name not in (None, within)):
        return {}
    size = stated_size(net)
    stated = ("size", "channels") if size is not None and len(size) == 3 else ()
    return {key: value for key, value in found.items() if key not in stated}


def _group(cfg: DictConfig) -> str:
    """The choice of `data=`."""
    return str(cfg.data.get("source") or cfg.data.name)


def _steps(augment: Any) -> list[str]:
    return [augment] if isinstance(augment, str) else [str(step) for step in augment or ()]
