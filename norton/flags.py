"""The published command lines, `--arch vgg_16_bn --ckpt FILE -r 1 -cpr [0.6]*6+[0.8]*7`, in Hydra's terms."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from norton.errors import InputError

# flag → Hydra's setting.  --gpu chooses among the devices before CUDA is asked, as the published scripts do.
FLAGS = {
    ("--arch",): "model",
    ("--ckpt",): "checkpoint",
    ("-r", "--rank"): "rank",
    ("--compress_rate",): "compress_rate",  # and -cpr
    ("--dataset",): "data",
    ("--data_dir",): "data.root",
    ("--batch_size",): "data.batch_size",
    ("--gpu",): "gpu",
}
ABOUT_DATA = ("data", "data.root", "data.batch_size", "gpu")


def translate(arguments: Sequence[str], ignored: Sequence[str] = ()) -> list[str]:
    """Replace published flags by Hydra overrides; other arguments pass.

    ignored: settings that the program does not have, because it needs no data.  Raises InputError for a flag without
    its value, and where flags stand beside settings of the form name=value.
    """
    # argparse would take Hydra's -c for an abbreviation of -cpr.
    arguments = [re.sub(r"^-cpr(?==|$)", "--compress_rate", argument) for argument in arguments]
    parser = _Parser(add_help=False, allow_abbrev=False)
    for names, setting in FLAGS.items():
        parser.add_argument(*names, dest=setting)
    if not any(_is_flag(argument) for argument in arguments):
        return arguments
    found, others = parser.parse_known_args(arguments)
    settings = [argument for argument in others if re.match(r"[+~]{0,2}[\w./@:-]+=", argument)]
    if settings:
        flag = next(argument for argument in arguments if _is_flag(argument))
        raise InputError(
            f"published flags and settings are mixed: {flag} and {settings[0]}; use one style, "
            f"e.g. {_as_settings(vars(found))}"
        )
    given = {setting: value for setting, value in vars(found).items() if value is not None and setting not in ignored}
    if (gpu := given.pop("gpu", None)) is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if "data.root" in given:
        given["data.root"] = str(Path(given["data.root"]).expanduser())
    return others + [f"{setting}={value}" for setting, value in given.items()]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def _is_flag(argument: str) -> bool:
    return any(argument == name or argument.startswith(f"{name}=") for names in FLAGS for name in names)


def _as_settings(given: dict[str, str | None]) -> str:
    return " ".join(f"{setting}={value}" for setting, value in given.items() if value is not None and setting != "gpu")
