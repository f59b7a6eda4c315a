"""Dependencies that only some of the work needs, the extras of setup.cfg: what to do where one is missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from norton.common.errors import InputError


def extra_of(module: str) -> str | None:
    """The extra of this package that installs a module, e.g. `export` for `onnx.helper`; None where no extra does."""
    try:
        requirements = metadata.requires("norton") or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
    name = module.partition(".")[0]
    for requirement in requirements:
        match = re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", requirement)
        if match and match[1] == name:
            return match[2]
    return None


@contextmanager
def optional(extra: str | None = None) -> Iterator[None]:
    """Imports of what an extra installs: where it is missing, an InputError names the extra.

    extra: its name, where it installs one module that nothing else has; else the package says which it is.
    A missing module that belongs to no extra raises ModuleNotFoundError as always.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = extra or extra_of(error.name or "")
        if extra is None:
            raise
        raise InputError(f"this needs {error.name}, which is not installed: pip install 'norton[{extra}]'") from None
