"""What to type next."""

import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from torch import nn

from norton.models.foreign import OPEN, TIMM, is_path


def evaluation(net: nn.Module, path: Path) -> str:
    """The command that evaluates a checkpoint.

    It names again what the file does not say: a constructor of the user's own, a function that makes the data, and the
    data where they were given and the network does not remember them.
    """
    arch = getattr(net, "arch", None)
    settings = [f"checkpoint={path}"]
    asked = hasattr(net, "arch_kwargs") or not str(arch).startswith((OPEN, TIMM))  # see `check_named`
    if arch is not None and is_path(arch) and asked:
        settings.append(f"model.arch={arch}")
    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    again = "data.module=" if getattr(net, "data_settings", None) else ("data=", "data.")
    settings += [override for override in given if override.startswith(again)]
    return f"{as_typed('evaluate')} {shlex.join(settings)}"


def as_typed(command: str) -> str:
    """A command as one types it where this one was typed: by `norton`, or in a checkout."""
    program = Path(sys.argv[0])
    if program.stem == "norton":
        return f"norton {command}"
    if program.stem == "__main__" and program.parent.name == "norton":
        return f"python -m norton {command}"
    if command in ("decompose", "prune", "evaluate", "complexity"):
        return f"python {command}.py"
    return f"python -m {command if '.' in command else f'experiments.{command}'}"
