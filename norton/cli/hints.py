"""What to type next."""

from pathlib import Path

from torch import nn

from norton.models.foreign import OPEN, is_path


def evaluation(net: nn.Module, path: Path) -> str:
    """The command that evaluates a checkpoint; a constructor of the user's own has to be named again."""
    arch = getattr(net, "arch", None)
    named = f" model.arch={arch}" if arch is not None and is_path(arch) and not arch.startswith(OPEN) else ""
    return f"python evaluate.py checkpoint={path}{named}"
