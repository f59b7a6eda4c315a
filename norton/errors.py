"""The error a user can act on: scripts print it as one line, the library raises it as a ValueError."""


class InputError(ValueError):
    """Bad input: says what is wrong, where, what is allowed and what to do.

    Scripts catch exactly this type and print its message without a traceback, so anything else that escapes is a bug.
    """


class Remark(UserWarning):
    """What a user should know of how a result came about, which is no error."""
