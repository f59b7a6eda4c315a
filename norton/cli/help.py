"""`--help` of a command: what it does, examples, the choices of its groups, and every setting with its meaning."""

import difflib
import fnmatch
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import hydra
import yaml
from omegaconf import OmegaConf

from norton.cli.config_files import meanings, read_config

# By name, as every experiment composes with one command; the others are of `pipeline`.
EXPERIMENTS = {"ablation": "sweep_*", "detection_train": "scenes*"}
WIDTH = 118
COMMENTS_AT = 34  # the column of meanings, beyond which a long value moves them
BELOW = (
    "Any setting can be given on the command line; results go to out=. HYDRA_FULL_ERROR=1 shows tracebacks. "
    "Hydra's own flags: --hydra-help."
)


class ListsInALine(yaml.SafeDumper):
    """Mappings in blocks, and lists as they are typed: `steps: [decompose, prune]`."""


ListsInALine.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def help_text(configs: Path, command: str, overrides: Sequence[str] = ()) -> str:
    """The help of `configs/COMMAND.yaml`; overrides: settings that were typed beside `--help`, shown as they are."""
    with hydra.initialize_config_dir(str(configs), version_base="1.3"):
        cfg = hydra.compose(command, list(overrides), return_hydra_config=True)
    explained = meanings(configs, command, cfg.hydra.runtime.choices)
    settings = {key: value for key, value in OmegaConf.to_container(cfg).items() if key != "hydra"}
    about = read_config(configs / f"{command}.yaml").help
    parts = [
        textwrap.fill(about["header"], WIDTH),
        "Examples:",
        about["footer"].strip(),
        choices_of(configs, command),
        "All settings with their defaults (setting=value):",
        "\n".join(commented(yaml.dump(settings, Dumper=ListsInALine, sort_keys=False, width=1000), explained)),
        BELOW,
    ]
    return "\n\n".join(part for part in parts if part)


def commented(text: str, meaning: Mapping[str, str]) -> Iterator[str]:
    """The lines of block YAML, each with a comment that says what its setting means."""
    parents: list[str] = []
    for line in text.splitlines():
        match = re.match(r"((?:  )*)(\S+):", line)
        assert match, line
        depth = len(match[1]) // 2
        parents = [*parents[:depth], match[2]]
        yield from _beside(line, meaning.get(".".join(parents), ""))


def _beside(line: str, meaning: str) -> list[str]:
    if not meaning:
        return [line]
    at = max(COMMENTS_AT, len(line) + 2)
    first, *others = textwrap.wrap(meaning, max(WIDTH - at - 2, 40))
    return [f"{line:<{at}}# {first}", *(f"{'':<{at}}# {other}" for other in others)]


def no_setting(configs: Path, command: str, name: str) -> str:
    """What to say of a setting that a command does not have: the nearest that it has, if one is near."""
    if name.startswith("trainer."):
        return f"{name} is not in configs/trainer; where Lightning's Trainer has it, a + adds it: +{name}=VALUE"
    known = meanings(configs, command, {})
    if name in known:
        group = name.partition(".")[0]
        return f"the choice of {group}= has no setting {name!r}; choose one that has it, or leave it out"
    last = {setting.rpartition(".")[2]: setting for setting in known}
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(name, last, 1)
    meant = f"did you mean {last.get(near[0], near[0])}? " if near else ""
    return f"there is no setting {name!r}; {meant}--help lists all settings"


def choices_of(configs: Path, command: str) -> str:
    """A line per group of a command's defaults: `group: choice, choice`; empty where it has none."""
    groups = read_config(configs / f"{command}.yaml").groups()
    lines = [f"{typed}: {', '.join(choices(configs, command, folder))}" for typed, folder, _ in groups]
    filled = [textwrap.fill(line, WIDTH, initial_indent="  ", subsequent_indent="    ") for line in lines]
    return "\n".join(["Choices per group (group=choice):", "", *filled]) if filled else ""


def choices(configs: Path, command: str, group: str) -> list[str]:
    """The choices of a group that fit a command."""
    names = sorted(path.stem for path in (configs / group).glob("*.yaml"))
    return [name for name in names if fits(command, name)] if group == "experiment" else names


def fits(command: str, experiment: str) -> bool:
    """Whether an experiment is one of a command."""
    owner = next((name for name, pattern in EXPERIMENTS.items() if fnmatch.fnmatch(experiment, pattern)), "pipeline")
    return owner == command
