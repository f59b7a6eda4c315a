"""What `--help` adds to Hydra's own: the choices of a command's groups, and of experiments those that fit it."""

import fnmatch
import textwrap
from pathlib import Path

import yaml

# By name, as every experiment composes with one command; the others are of `pipeline`.
EXPERIMENTS = {"ablation": "sweep_*", "detection_train": "scenes*"}


def choices_of(configs: Path, command: str) -> str:
    """A line per group of a command's defaults: `group: choice, choice`; empty where it has none."""
    defaults = yaml.safe_load((configs / f"{command}.yaml").read_text())["defaults"]
    groups = [key for entry in defaults if isinstance(entry, dict) for key in entry if not key.startswith("override ")]
    lines = [f"{group}: {', '.join(choices(configs, command, group.split('@')[0]))}" for group in groups]
    filled = [textwrap.fill(line, 118, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return "\n".join(["Choices per group (group=choice):", "", *filled, ""]) if filled else ""


def choices(configs: Path, command: str, group: str) -> list[str]:
    """The choices of a group that fit a command."""
    names = sorted(path.stem for path in (configs / group).glob("*.yaml"))
    return [name for name in names if fits(command, name)] if group == "experiment" else names


def fits(command: str, experiment: str) -> bool:
    """Whether an experiment is one of a command."""
    owner = next((name for name, pattern in EXPERIMENTS.items() if fnmatch.fnmatch(experiment, pattern)), "pipeline")
    return owner == command
