"""Reference pages of all settings, written from `configs/` before each build."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sphinx.application import Sphinx

from norton.cli.config_files import ConfigFile, Setting, group_meanings, read_config

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = REPOSITORY / "configs"
FOLDER = "reference/settings"
NO_COMMAND = {"base"}


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("*", r"\*").replace("<", "&lt;").replace("_", r"\_").replace("$", r"\$")


def _table(settings: list[Setting]) -> list[str]:
    rows = [f"| `{s.name}` | `{s.default or 'null'}` | {_cell(s.meaning)} |".replace("| `` |", "| |") for s in settings]
    return ["| setting | default | meaning |", "| --- | --- | --- |", *rows, ""]


def _is_group(folder: str) -> bool:
    return (CONFIGS / folder).is_dir()


def _command_page(config: ConfigFile) -> str:
    header = " ".join(str(config.help.get("header", "")).split())
    lines = [f"# {config.name}", "", _cell(header), ""]
    if examples := _examples(config.help):
        lines += ["```text", *examples, "```", ""]
    inherited = [setting for name in config.bases() for setting in read_config(CONFIGS / f"{name}.yaml").settings]
    own = {s.name: s for s in [*inherited, *config.settings]}
    own |= {name: replace(own[name], meaning=note) for name, note in config.notes.items() if name in own}
    lines += ["## Settings", "", *_table(list(own.values()))]
    if groups := [g for g in config.groups() if _is_group(g[1])]:
        lines += ["## Groups", "", "`GROUP=CHOICE` picks one; `GROUP.SETTING=VALUE` changes a part of it.", ""]
        lines += ["| group | default | settings |", "| --- | --- | --- |"]
        for typed, folder, choice in groups:
            used = typed.split("@")[-1]
            lines.append(f"| `{typed}` | `{choice}` | [{used}](group-{folder}.md) |")
    return "\n".join([*lines, ""])


def _examples(help_: dict) -> list[str]:
    """The command lines at the end of a command's help."""
    return [line.strip() for line in str(help_.get("footer", "")).splitlines() if line.strip()]


def _group_page(folder: str, users: Iterable[str]) -> str:
    by = ", ".join(f"[{name}]({name}.md)" for name in users)
    lines = [f"# {folder}", "", f"A group of settings, of {by}.", ""]
    configs = {path: read_config(path) for path in sorted((CONFIGS / folder).glob("*.yaml"))}
    # Explained once in a group is enough.
    known = group_meanings(CONFIGS / folder)
    for path, config in configs.items():
        settings = [replace(s, meaning=s.meaning or known.get(s.name, "")) for s in config.settings]
        lines += [f"## {folder}={path.stem}", ""]
        if config.about:
            lines += [_cell(config.about), ""]
        if starts := config.bases():
            lines += [f"Starts from `{', '.join(starts)}` and changes:", ""]
        if settings:
            lines += _table(settings)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Name of the page → its Markdown."""
    commands = {p.stem: read_config(p) for p in sorted(CONFIGS.glob("*.yaml")) if p.stem not in NO_COMMAND}
    users: dict[str, dict[str, None]] = {}  # in the order of the commands
    for name, config in commands.items():
        for _, folder, _ in config.groups():
            if _is_group(folder):
                users.setdefault(folder, {})[name] = None
    found = {name: _command_page(config) for name, config in commands.items()}
    found |= {f"group-{folder}": _group_page(folder, users[folder]) for folder in sorted(users)}
    return found | {"index": _index(commands, sorted(users))}


def _index(commands: dict[str, ConfigFile], groups: list[str]) -> str:
    lines = [
        "# Settings",
        "",
        "These pages are made from `configs/`. A setting is given as `name=value` on the command line.",
        "A setting that is not listed for a command is refused by it.",
        "",
        "| command | does |",
        "| --- | --- |",
    ]
    for name, config in commands.items():
        header = " ".join(str(config.help.get("header", "")).split())
        lines.append(f"| [{name}]({name}.md) | {_cell(header)} |")
    lines += ["", "| group | choices |", "| --- | --- |"]
    for folder in groups:
        choices = [path.stem for path in sorted((CONFIGS / folder).glob("*.yaml"))]
        lines.append(f"| [{folder}](group-{folder}.md) | {', '.join(f'`{choice}`' for choice in choices)} |")
    hidden = ["", "```{toctree}", ":hidden:", ":caption: Commands", "", *commands, "```"]
    hidden += ["", "```{toctree}", ":hidden:", ":caption: Groups", "", *(f"group-{g}" for g in groups), "```", ""]
    return "\n".join(lines + hidden)


def write(folder: Path, made: dict[str, str]) -> None:
    """Write pages that changed, remove those that are no longer made."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in made:
            old.unlink()
    for name, text in made.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", lambda app: write(Path(app.srcdir) / FOLDER, pages()))
    return {"parallel_read_safe": True}
