"""What takes long to make and is the same for all tests: made by one process of a session, read by the others."""

import os
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock


def once(folders, name: str, make) -> Any:
    """What `make()` returns, which torch.save must take; folders: pytest's tmp_path_factory."""
    folder: Path = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    path = folder / f"once_{name}.pt"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            torch.save(make(), path)
    return torch.load(path, weights_only=False)
