"""What a user can act on: the error that scripts print as one line, and the warning that they print as a note."""

import inspect
import re
import warnings


class InputError(ValueError):
    """Bad input: says what is wrong, where, what is allowed and what to do.

    Scripts catch exactly this type and print its message without a traceback, so anything else that escapes is a bug.
    """


def first_line(error: Exception | str) -> str:
    """What an error says, in one line: its first that is not empty, at most 160 characters; else the error's name.

    TorchScript says first that something failed, then where, then what.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "TorchScript interpreter" in lines[0]:
        lines = [re.sub(r"^(\w*Error: )+", "", line) for line in lines if re.match(r"\w*Error: ", line)] or lines
    return lines[0][:160] if lines else type(error).__name__


class NortonWarning(UserWarning):
    """What a user should know of how a result came about, which is no error."""


def warn(message: str) -> None:
    """Warn with a `NortonWarning` that points to the line that called this package, however deep inside it arose."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("norton", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, NortonWarning, stacklevel=level - 1 if frame is None else level)
