"""Files are written whole or not at all: to a temporary file beside the target, then renamed."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from norton.common.errors import InputError


def write_whole(path: str | Path, content: bytes | str) -> Path:
    """Write a file at once; whoever looks sees the old content or the new, never a part.

    Makes the folder.  Raises InputError where it cannot be written, for instance with a full disk.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:40]}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; choose a writable folder with space left") from error
    except BaseException:  # an interrupt must not leave the temporary file behind
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise
    return path


def write_json(path: str | Path, data: Any) -> Path:
    """Write plain data as JSON that a person can read."""
    return write_whole(path, json.dumps(data, indent=2) + "\n")
