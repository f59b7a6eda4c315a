"""Compression rates: the fraction of filters removed per layer, written as in the paper, `[0.6]*6+[0.8]*7`."""

import math
import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from norton.common.errors import InputError

MOST_RATES = 10_000
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_TERM = re.compile(rf"\[({_NUMBER}(?:,{_NUMBER})*),?\](?:\*(\d+))?")


def parse_rates(rates: str | float | Iterable[float]) -> list[float]:
    """Read rates as published: lists of numbers, repeated by `*n` and joined by `+`; also a plain list of numbers.

    Raises InputError naming the part that is not a rate, or the rate outside [0, 1).
    """
    if rates is None:
        raise InputError("compress_rate: no rates given; write e.g. [0.6]*6+[0.8]*7")
    if isinstance(rates, str):
        rates = _parse_text(rates)
    elif hasattr(rates, "tolist"):  # arrays and tensors
        rates = rates.tolist()
    if isinstance(rates, (int, float)):
        rates = [rates]
    values = []
    for position, rate in enumerate(rates):
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise InputError(f"compress_rate: entry {position} is {rate!r}, not a number; write e.g. [0.6]*6+[0.8]*7")
        if not (math.isfinite(rate) and 0 <= rate < 1):
            raise InputError(
                f"compress_rate: entry {position} is {rate}; a rate is the fraction of filters removed, at least 0 and "
                "below 1"
            )
        values.append(float(rate))
    return values


def _parse_text(text: str) -> list[float]:
    compact = re.sub(r"\s", "", text)
    values, position = [], 0
    while True:
        term = _TERM.match(compact, position)
        if not term:
            raise InputError(
                f"compress_rate: cannot read {compact[position:] or 'the end'!r} in {text!r}; write lists of numbers "
                "joined by +, as in [0.6]*6+[0.8]*7"
            )
        if int(term[2] or 1) > MOST_RATES:
            raise InputError(
                f"compress_rate: {term[2]} repetitions in {text!r}; no network has over {MOST_RATES} layers"
            )
        values += [float(number) for number in term[1].split(",")] * int(term[2] or 1)
        position = term.end()
        if position == len(compact):
            return values
        if compact[position] != "+":
            raise InputError(f"compress_rate: expected + before {compact[position:]!r} in {text!r}")
        position += 1


def format_rates(rates: Sequence[float]) -> str:
    """Write rates as the paper does; `parse_rates` reads the same numbers back."""
    terms = []
    for rate, run in groupby(rates):
        number = f"{rate:.0f}." if rate == int(rate) else repr(float(rate))
        count = len(list(run))
        terms.append(f"[{number}]" + (f"*{count}" if count > 1 else ""))
    return "+".join(terms)


def pruned_width(width: int, rate: float) -> int:
    """Filters left of `width` at a rate, truncated in double precision as published."""
    return int(width * (1 - rate))
