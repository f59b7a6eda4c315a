"""The files of `configs/` and what their comments say of each setting, for `--help` and the pages of the site."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Setting:
    """A setting's full name, its default as YAML writes it, the comment beside it."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True)
class ConfigFile:
    """A file of `configs/`: its defaults list, its settings, the comment at its head, its help.

    notes: setting of another file → what this one says of it, in a comment `# NAME: ...`.
    """

    name: str
    defaults: list[Any]
    settings: list[Setting]
    about: str
    help: dict[str, str]
    notes: dict[str, str]

    def groups(self) -> list[tuple[str, str, str]]:
        """(group as it is typed, its folder, its default choice) of the defaults list."""
        entries = [item for item in self.defaults if isinstance(item, dict)]
        pairs = [(str(key), choice) for entry in entries for key, choice in entry.items()]
        return [
            (key, key.split("@")[0], "null" if choice is None else str(choice))
            for key, choice in pairs
            if not key.startswith("override ")
        ]

    def bases(self) -> list[str]:
        """The files that it starts from."""
        return [item.lstrip("/") for item in self.defaults if isinstance(item, str) and item != "_self_"]


def read_config(path: Path) -> ConfigFile:
    text = path.read_text()
    data = yaml.safe_load(text) or {}
    lines = text.splitlines()
    root = yaml.compose(text)
    settings = list(_settings(root, "", lines)) if isinstance(root, yaml.MappingNode) else []
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    about = " ".join(_comment_above(lines, first))
    return ConfigFile(
        path.stem, data.get("defaults", []), settings, about, data.get("hydra", {}).get("help", {}), _notes(text)
    )


def command_meanings(configs: Path, command: str) -> dict[str, str]:
    """Setting → what it means, of those that are a command's own."""
    config = read_config(configs / f"{command}.yaml")
    inherited = [setting for name in config.bases() for setting in read_config(configs / f"{name}.yaml").settings]
    return {setting.name: setting.meaning for setting in [*inherited, *config.settings]} | config.notes


def group_meanings(folder: Path, choice: str | None = None) -> dict[str, str]:
    """Setting → what it means, of a choice; what it does not explain itself, another choice of the group does."""
    first = [choice, *read_config(folder / f"{choice}.yaml").bases()] if choice else []
    names = [*sorted(path.stem for path in folder.glob("*.yaml")), *reversed(first)]
    settings = [setting for name in names for setting in read_config(folder / f"{name}.yaml").settings]
    return {setting.name: setting.meaning for setting in settings if setting.meaning}


def meanings(configs: Path, command: str, choices: Mapping[str, str | None]) -> Mapping[str, str]:
    """Full name of a setting → what it means, of a command and its groups; choices: of each group, as it is typed."""
    found: dict[str, str] = {}
    for typed, folder, _ in read_config(configs / f"{command}.yaml").groups():
        prefix, chosen = typed.split("@")[-1], choices.get(typed)
        of_group = group_meanings(configs / folder, chosen)
        found |= {f"{prefix}.{name}": meaning for name, meaning in of_group.items()}
    found |= command_meanings(configs, command)
    return {name: meaning for name, meaning in found.items() if meaning}


def _notes(text: str) -> dict[str, str]:
    """The comments that explain settings by name: `# rank, compress_rate: what the file is expected to hold`."""
    found: dict[str, str] = {}
    for block in re.findall(r"(?m)^((?:# .*\n)+)", text):
        names, colon, meaning = " ".join(block.replace("# ", "").split()).partition(": ")
        if colon and re.fullmatch(r"[\w.]+(, [\w.]+)*", names):
            found |= dict.fromkeys(names.split(", "), meaning)
    return found


def _comment_above(lines: list[str], index: int) -> list[str]:
    found: list[str] = []
    while index and lines[index - 1].lstrip().startswith("#"):
        index -= 1
        found.insert(0, lines[index].strip().lstrip("#").strip())
    return [line for line in found if not line.startswith("@package")]


def _settings(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[Setting]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if not prefix and key.value in ("defaults", "hydra"):
            continue
        comment = _beside(lines, value)
        above = _comment_above(lines, key.start_mark.line) if prefix else []
        if isinstance(value, yaml.MappingNode) and not value.flow_style and value.value:
            yield from _settings(value, f"{name}.", lines)
            continue
        default = lines[value.start_mark.line][value.start_mark.column : value.end_mark.column]
        if value.start_mark.line != value.end_mark.line:
            default = yaml.serialize(value).strip()
        yield Setting(name, " ".join(default.split()), comment or " ".join(above))


def _beside(lines: list[str], value: yaml.Node) -> str:
    """The comment behind a value, on its line."""
    if value.end_mark.line >= len(lines):
        return ""
    _, mark, comment = lines[value.end_mark.line][value.end_mark.column :].partition("#")
    return comment.strip() if mark else ""
