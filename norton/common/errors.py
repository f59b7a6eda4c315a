"""The error a user can act on: scripts print it as one line, the library raises it as a ValueError."""


class InputError(ValueError):
    """Bad input: says what is wrong, where, what is allowed and what to do.

    Scripts catch exactly this type and print its message without a traceback, so anything else that escapes is a bug.
    """


def first_line(error: Exception | str) -> str:
    """What an error says, in one line: its first that is not empty, at most 160 characters; else the error's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


class Remark(UserWarning):
    """What a user should know of how a result came about, which is no error."""
