"""What every script shares: arguments as people type them, one line for an error, one folder for the results."""

import contextlib
import functools
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from norton.cli.help import help_text, no_setting
from norton.common.errors import InputError, NortonWarning
from norton.common.files import write_whole

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.exists()
)  # installed, or not
EXIT_BAD_INPUT = 2
BAD_INPUT = (InputError, OSError, HydraException, OmegaConfBaseException)
_TRACEBACK_WANTED = os.environ.get("HYDRA_FULL_ERROR") == "1"


def script(
    config_name: str,
    translate: Callable[[list[str]], list[str]] = list,
    *,
    is_sweep: bool = False,
    resumes: bool = False,
) -> Callable[[Callable[[DictConfig], int | None]], Callable[[], None]]:
    """Turn `run(cfg)` into a Hydra program on `configs/<config_name>.yaml`.

    translate: rewrites the command line's arguments before Hydra sees them.  is_sweep: the program's jobs are the
    points of one sweep, which share a folder.  resumes: a run that was interrupted goes on in its
    folder, others start anew; users are told which.  Bad input ends with one line on stderr and exit code 2;
    HYDRA_FULL_ERROR=1 asks for the traceback.  What `run` returns is the exit code.
    """

    def decorate(run: Callable[[DictConfig], int | None]) -> Callable[[], None]:
        @functools.wraps(run)
        def job(cfg: DictConfig) -> None:
            _quiet_libraries()
            # Jobs of one sweep start within the same second.
            if not is_sweep and HydraConfig.get().mode == RunMode.MULTIRUN:
                cfg.out = f"{cfg.out}/{HydraConfig.get().job.num}"
            try:
                code = run(cfg)
            except (*BAD_INPUT, KeyboardInterrupt) as error:
                if is_sweep:
                    raise  # to the sweeper, which reports
                if not isinstance(error, KeyboardInterrupt):
                    forsake_folder(cfg)
                _report(error, resumes)  # here already, or Hydra would announce the error in a line of its own
            if code:
                sys.exit(code)

        @functools.wraps(run)
        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra would print errors itself, in many lines
            try:
                sys.argv[1:] = [
                    quote(argument) for argument in own_arguments(own_data(translate(joined(sys.argv[1:]))))
                ]
                if {"--help", "-h"} & set(sys.argv[1:]):
                    print(help_text(CONFIGS, config_name, [word for word in sys.argv[1:] if "=" in word]))
                    return
                if is_sweep and not any(word.startswith("-") for word in sys.argv[1:]):
                    sys.argv.append("--multirun")  # by hydra.mode alone, a wrong setting is said to be ambiguous
                hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=config_name)(job)()
            except (*BAD_INPUT, KeyboardInterrupt) as error:
                unknown = re.match(r"Could not override '(.+)'", str(error))
                _report(InputError(no_setting(CONFIGS, config_name, unknown[1])) if unknown else error, resumes)
            except ValueError as error:
                if "Config group override" not in str(error):  # Hydra's own, of a plain type
                    raise
                _report(
                    InputError("a group of settings takes the name of one of its choices, see --help; or set its parts")
                )

        return main

    return decorate


def joined(arguments: Sequence[str]) -> list[str]:
    """Arguments with a mapping, `rank={layer1.*: 3}`, in one again, where a shell has cut it at its blanks."""
    whole: list[str] = []
    for argument in arguments:
        if whole and "={" in whole[-1] and whole[-1].count("{") > whole[-1].count("}"):
            whole[-1] += f" {argument}"
        else:
            whole.append(argument)
    return whole


def own_data(arguments: Sequence[str]) -> list[str]:
    """Arguments with `data=module` before them, where a function of the user's own is named and no data are."""
    own = any(one.startswith("data.module=") for one in arguments)
    return ["data=module"] * (own and not any(one.startswith("data=") for one in arguments)) + list(arguments)


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """Arguments with a ++ before those of a constructor, `model.kwargs.NAME=`, whose names only their user knows."""
    return [f"++{one}" if re.match(r"model\.kwargs[.=]", one) else one for one in arguments]


def quote(argument: str) -> str:
    """Quote the value of `key=value` where Hydra's grammar would reject it, such as `compress_rate=[0.6]*6+[0.8]*7`.

    In a sweep (`-m`) rates separated by commas stay separate values.
    """
    match = re.fullmatch(r"([+~]{0,2}[\w./@:-]+)=(.*)", argument, re.DOTALL)
    if not match or _parses(argument):
        return argument
    key, value = match.groups()
    if ("'" in value or '"' in value) and key != "checkpoint":
        return argument  # whoever quotes knows the grammar; Hydra's own message is the better one
    parts = re.split(r",(?![^\[]*\])", value) if key == "compress_rate" else [value]
    return f"{key}=" + ",".join(quoted(part) for part in parts)


def quoted(value: str) -> str:
    """Any text as a string of Hydra's grammar, where backslashes mean themselves unless a quote follows."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + "\\'" * bool(m[2]), value) + "'"


def open_folder(cfg: DictConfig) -> Path:
    """The run's folder, with the resolved config in it.

    A folder that holds a run of another config is refused, so that results are never mixed or lost.
    """
    check_folder(cfg)
    folder = Path(str(cfg.out))
    write_whole(folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    return folder


def forsake_folder(cfg: DictConfig) -> None:
    """Remove the folder of a run that failed before there was anything in it but its config, and empty folders."""
    folder = Path(str(cfg.get("out")))
    config = folder / "config.yaml"
    if not config.is_file() or not _is_of(config, cfg):
        return
    inside = sorted(folder.rglob("*"), reverse=True)  # what is in a folder comes before it
    if any(path != config and (path.is_symlink() or not path.is_dir()) for path in inside):
        return
    config.unlink(missing_ok=True)
    for path in (*inside, folder):
        with contextlib.suppress(OSError):  # another device of the same training was faster
            path.rmdir()


def check_folder(cfg: DictConfig) -> None:
    """Raise InputError, before any work, for a folder that `open_folder` will refuse."""
    folder = Path(str(cfg.out))
    if (taken := next((path for path in (folder, *folder.parents) if path.exists()), folder)).is_file():
        raise InputError(f"out={folder}: {taken} is a file; choose a folder that is new, or of the same run")
    config = folder / "config.yaml"
    if config.exists() and not _is_of(config, cfg):
        raise InputError(
            f"{config.parent} holds a run with other settings (config.yaml); choose another out= or remove it"
        )


def _is_of(config: Path, cfg: DictConfig) -> bool:
    """Whether a config.yaml is that of a run."""
    return config.read_text() == OmegaConf.to_yaml(cfg, resolve=True)


def _parses(argument: str) -> bool:
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def _report(error: BaseException, resumes: bool = False) -> NoReturn:
    if _TRACEBACK_WANTED:
        raise error
    if isinstance(error, KeyboardInterrupt):
        then = "the same command with the same out= goes on from here" if resumes else "the same command starts anew"
        print(f"interrupted; {then}", file=sys.stderr)
        sys.exit(130)
    print(f"error: {_one_line(error)}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _one_line(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        return f"unknown {group or 'config'} {choice!r}; choose one of {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException) and set("{}") & set(error.override):
        return f"cannot read {error.override!r}; put the setting into quotes as a whole, e.g. 'rank={{layer1.*: 3}}'"
    if isinstance(error, OverrideParseException) and "=" not in error.override:
        return f"cannot read {error.override!r}; settings are name=value, and --help lists them"
    return " ".join(str(error).split("full_key")[0].split())


def _quiet_libraries() -> None:
    """Silence warnings of Lightning that no user of these scripts can act on; warnings of other kinds stay."""
    logging.disable(logging.INFO)  # Lightning sets its own loggers' levels when it is imported, which is later
    for message in (
        ".*does not have many workers.*",
        ".*lower value for log_every_n_steps.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*recommended to use `self.log.*",
    ):
        warnings.filterwarnings("ignore", message)
    warnings.formatwarning = _one_line_warning


def _one_line_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What this project warns of, without the place in its code; warnings of libraries with it."""
    return f"{'note' if category is NortonWarning else f'{filename}:{lineno}: {category.__name__}'}: {message}\n"
