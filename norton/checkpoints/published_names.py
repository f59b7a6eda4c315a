"""File names of published checkpoints, which say what the file holds: `vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt`."""

import re
from itertools import product
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import torch

from norton.common.errors import InputError
from norton.models import NETWORKS, dense_network
from norton.pruning.rates import format_rates, parse_rates

PATTERN = "NETWORK_RATES_RANK_TOP1.pt or NETWORK_CRITERION_RATES_RANK_TOP1.pt"


class PublishedName(NamedTuple):
    """What a name says; top1 in percent, criterion None where the name has none."""

    arch: str
    criterion: str | None
    compress_rate: str
    rank: int
    top1: float


def parse_name(path: str | Path) -> PublishedName:
    """Read the name of a published checkpoint.

    Rates may be spelt safely for shells and downloads, with dots for brackets and stars: `.0.6.6+.0.8.7`, where runs
    of dots may be one; of the readings that such a spelling allows, the one counts that has as many rates as the
    network needs.

    Raises InputError naming the part that cannot be read.
    """
    name = unquote(Path(path).name)
    stem = re.sub(r"(\.(pt|pth|ckpt|tar))+$", "", name)
    arch = next((arch for arch in NETWORKS if stem == arch or stem.startswith(f"{arch}_")), None)
    if arch is None:
        raise _unreadable(name, "network", stem, f"it must begin with one of {', '.join(NETWORKS)}")
    parts = stem[len(arch) + 1 :].split("_") if stem != arch else []
    if len(parts) not in (3, 4):
        raise _unreadable(name, "part after the network", "_".join(parts), "rates, rank and accuracy must follow")
    criterion = parts.pop(0) if len(parts) == 4 else None
    if criterion is not None and not re.fullmatch(r"[a-zA-Z][\w-]*", criterion):
        raise _unreadable(name, "criterion", criterion, "it must be a word such as pabs")
    rates, rank, top1 = parts
    if not re.fullmatch(r"\d{1,3}", rank):
        raise _unreadable(name, "rank", rank, "it must be a whole number")
    if not re.fullmatch(r"\d+(\.\d+)?", top1) or float(top1) > 100:
        raise _unreadable(name, "accuracy", top1, "it must be a number in percent")
    return PublishedName(arch, criterion, _read_rates(name, arch, rates), int(rank), float(top1))


def resembles_name(path: str | Path) -> bool:
    """Whether a name has rates in it, and so is meant as a published one, though it may not be readable."""
    return bool(re.search(r"\[|%5b|\.0\.+\d", Path(path).name.lower()))


def _read_rates(name: str, arch: str, text: str) -> str:
    """Rates as the paper writes them."""
    if "[" in text:
        try:
            parse_rates(text)
        except InputError as error:
            raise _unreadable(name, "rates", text, str(error).removeprefix("compress_rate: ")) from None
        return text
    readings = [_readings(term) for term in text.split("+")]
    if not all(readings):
        term = text.split("+")[readings.index([])]
        raise _unreadable(name, "rates", term, "write [0.6]*6+[0.8]*7, or .0.6.6+.0.8.7")
    written = ["+".join(terms) for terms in product(*readings)]
    if len(written) == 1:
        return written[0]
    with torch.device("meta"):
        net = dense_network(arch)
    needed = len(net.rated_layers())
    count = {rates: len(parse_rates(rates)) for rates in written}
    fitting = [rates for rates in written if count[rates] == needed]
    fitting = fitting or [rates for rates in written if needed - net.optional_rates <= count[rates] < needed]
    if len({format_rates(parse_rates(rates)) for rates in fitting}) != 1:
        raise _unreadable(name, "rates", text, f"it can be read in several ways; {arch} needs {needed} rates")
    return fitting[0]


def _readings(term: str) -> list[str]:
    """What one term in the safe spelling may mean: `.0.6.6` is [0.6]*6, `.0.13` both [0.13] and [0.]*13.

    A count of one is never written.
    """
    core = term.strip(".")
    if re.fullmatch(r"0+", core):
        return ["[0.]"]
    if match := re.fullmatch(r"0\.{2,}(\d+)", core):
        return [f"[0.]*{int(match[1])}"]
    if match := re.fullmatch(r"(0\.\d+)\.+([1-9]\d*)", core):
        return [f"[{match[1]}]*{match[2]}"]
    if match := re.fullmatch(r"0\.(\d+)", core):
        return [f"[{core}]"] + ([f"[0.]*{match[1]}"] if match[1][0] != "0" and match[1] != "1" else [])
    return []


def _unreadable(name: str, part: str, text: str, allowed: str) -> InputError:
    return InputError(f"cannot read the {part} {text!r} in the name {name!r}: {allowed}; published names are {PATTERN}")
