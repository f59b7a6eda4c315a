"""The grid of a sweep: its points, what they are called, and in which order they run."""

import itertools
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from rich.progress import track

import norton
from experiments.sweeps.identity import IN_LABEL, check, fingerprint, meaning, short_label, stated
from norton.cli import program
from norton.cli.hints import as_typed

QUOTES = "'\""
NOT_OF_A_POINT = ("name", "out", "shared", "extend")  # settings of a sweep as a whole


class Planned(NamedTuple):
    """A point of the grid."""

    point: str
    label: str
    overrides: list[str]
    swept: dict[str, str]
    shares: str  # what it begins with, which other points may have in common with it


def expand(loader: ConfigLoader, overrides: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """The jobs of a grid, each with its overrides, and the names of the settings that are swept.

    A later override of a setting counts.  Raises InputError for values that cannot be counted, as `interval(0,1)`.
    """
    values: dict[str, list[str]] = {}
    swept = []
    for override in OverridesParser.create(config_loader=loader).parse_overrides(list(overrides)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
            continue
        if not override.is_discrete_sweep():
            raise norton.InputError(f"{override.input_line}: give the values one by one, separated by commas")
        values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        swept.append(_split(key)[0])
    return [list(job) for job in itertools.product(*values.values())], swept


def plan_points(
    grid: Sequence[Sequence[str]], swept: Sequence[str], compose: Callable[[Sequence[str]], DictConfig]
) -> Iterator[Planned]:
    """Every point of a grid; those that differ only in settings that nothing uses are one, the first of them.

    Raises InputError for settings that cannot be run, and for a point that repeats.
    """
    stated_by: dict[str, Sequence[str]] = {}
    planned = set()
    for job in track(grid, "plan", transient=True, disable=len(grid) < 20):
        cfg = compose(job)
        check(cfg)
        settings = fingerprint(stated(cfg))
        if settings in stated_by:
            raise norton.InputError(
                f"two points of the grid are the same: {_words(job, swept)} and {_words(stated_by[settings], swept)}; "
                "leave one out"
            )
        stated_by[settings] = job
        said = meaning(cfg)
        point = fingerprint(said)
        if point in planned:
            continue
        planned.add(point)
        values = dict(_split(override) for override in job)
        shares = fingerprint({key: said.get(key) for key in ("rank", "decomposition", "model", "checkpoint")})
        chosen = {key: values[key] for key in swept}
        others = [f"{key} {value.strip(QUOTES)}" for key, value in chosen.items() if key not in IN_LABEL]
        label = ", ".join([short_label(cfg), *others])
        yield Planned(point, label, list(job), chosen, shares)


def command(planned: Planned, name: str) -> str:
    """The command that measures this point alone."""
    overrides = [override for override in planned.overrides if _split(override)[0] not in NOT_OF_A_POINT]
    words = [word for word in overrides if not word.startswith(("hydra/", "hydra."))]
    return typed([*words, f"name={name}_{planned.point}"])


def typed(arguments: Sequence[str]) -> str:
    """The command as a person types it, without the quotes that Hydra's grammar wants and `program.quote` adds."""
    plain = [re.sub(r"'([^'\\]*)'", r"\1", argument) for argument in arguments]
    words = [new if program.quote(new) == old else old for new, old in zip(plain, arguments, strict=True)]
    return f"{as_typed('ablation')} {shlex.join(words)}"


def take_turns(missing: Sequence[Planned]) -> list[Planned]:
    """Points that begin alike far apart, so that several processes do not wait for one to make what they share."""
    queues: dict[str, list[Planned]] = {}
    for planned in missing:
        queues.setdefault(planned.shares, []).append(planned)
    ordered = []
    while any(queues.values()):
        ordered += [queue.pop(0) for queue in queues.values() if queue]
    return ordered


def _split(override: str) -> tuple[str, str]:
    key, _, value = override.partition("=")
    return key.lstrip("+~"), value


def _words(job: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(override for override in job if _split(override)[0] in swept)
