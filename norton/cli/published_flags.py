"""The published command lines, `--arch vgg_16_bn --ckpt FILE -r 1 -cpr [0.6]*6+[0.8]*7`, in Hydra's terms."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from norton.cli.program import quoted
from norton.common.errors import InputError

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
HYDRA = ("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--multirun", "--info")
ABOUT_DATA = ("data", "data.root", "data.batch_size", "gpu")


def translate(arguments: Sequence[str], ignored: Sequence[str] = ()) -> list[str]:
    """Replace published flags by Hydra overrides; other arguments pass.

    ignored: settings that the program does not have, because it needs no data.  Raises InputError for a flag without
    its value, for flags that are not among the published ones, and where flags stand beside settings of the form
    name=value.
    """
    # argparse would take Hydra's -c for an abbreviation of -cpr, and knows a value glued to one letter only.
    arguments = [re.sub(r"^-cpr(=?)(.*)", _spelt_out, argument) for argument in arguments]
    parser = _Parser(add_help=False, allow_abbrev=False)
    for names, setting in FLAGS.items():
        parser.add_argument(*names, dest=setting)
    found, others = parser.parse_known_args(arguments)
    given = {setting: value for setting, value in vars(found).items() if value is not None}
    if not given:
        return arguments
    settings = [argument for argument in others if re.match(r"[+~]{0,2}[\w./@:-]+=", argument)]
    if settings:
        flag = next(names[0] for names, setting in FLAGS.items() if setting in given)
        everything = [*settings, *(f"{setting}={value}" for setting, value in given.items() if setting != "gpu")]
        raise InputError(
            f"published flags and settings are mixed: {flag} and {settings[0]}; use one style, "
            f"e.g. {' '.join(dict.fromkeys(everything))}"
        )
    if unknown := [argument for argument in others if argument.startswith("--") and argument not in HYDRA]:
        known = ", ".join("/".join(names) for names in FLAGS).replace("--compress_rate", "-cpr/--compress_rate")
        raise InputError(f"unknown flag {unknown[0]}; the published ones are {known}")
    if "model" in given:
        given["model"] = given["model"].removesuffix("_CPresnet50_fpn")  # how the paper calls its detectors
    if "=" in given.get("rank", ""):
        raise InputError(f"-r {given['rank']}: expected a rank, such as -r 1")
    if (gpu := given.pop("gpu", None)) is not None and "gpu" not in ignored:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    for path in {"checkpoint", "data.root"} & given.keys():
        given[path] = quoted(str(Path(given[path]).expanduser()))
    return others + [f"{setting}={value}" for setting, value in given.items() if setting not in ignored]


def _spelt_out(match: re.Match) -> str:
    return f"--compress_rate={match[2]}" if match[1] or match[2] else "--compress_rate"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)
