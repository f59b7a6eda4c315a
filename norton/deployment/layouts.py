"""Memory formats: images laid out in one, and views that need to be copies in it."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


def laid_out(value: Any, layout: torch.memory_format = torch.channels_last) -> Any:
    """Images in a memory format; anything else as it is."""
    return value.contiguous(memory_format=layout) if isinstance(value, Tensor) and value.ndim == 4 else value


class Reshaping(TorchFunctionMode):
    """Lets views be copies where a tensor cannot be viewed so, as in channels-last."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.view:
            return func(*args, **kwargs)
        if torch.compiler.is_compiling() and not isinstance(args[1], torch.dtype):
            return Tensor.reshape(*args, **kwargs)  # memory formats may be other ones when the program runs
        try:
            return func(*args, **kwargs)
        except (RuntimeError, ValueError):  # the latter without values
            return Tensor.reshape(*args, **kwargs)
