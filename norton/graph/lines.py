"""Which line of a network's own code something comes from, for people."""

import linecache
import os
import sys
import traceback

import torch

# Torch's code, and this room's, which runs the network's.
_ELSEWHERE = tuple(os.path.join(os.path.dirname(file), "") for file in (torch.__file__, __file__))


_EINOPS = os.path.join("", "einops", "")


def running_line() -> tuple[str, int]:
    """File and number of the innermost line that runs now, of the network's own code."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (_is_elsewhere(frame.f_code.co_filename) or _EINOPS in frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def runs_in_einops() -> bool:
    """Whether the line that runs now is one of einops, which asks sizes for nothing but whether they fit."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_elsewhere(frame.f_code.co_filename):
        frame = frame.f_back
    return _EINOPS in frame.f_code.co_filename


def _is_elsewhere(file: str) -> bool:
    return file.startswith(_ELSEWHERE)


def line_of(error: Exception) -> str:
    """The innermost line from which an error arose, with its text; empty where it is none of the network's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_ELSEWHERE)]
    return shown((frames[-1].filename, frames[-1].lineno or 0)) if frames else ""


def shown(line: tuple[str, int]) -> str:
    """A line with its text."""
    file, number = line
    return f"{file}:{number} ({linecache.getline(file, number).strip()})"
