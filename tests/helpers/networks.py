"""Random networks whose BatchNorm does something."""

import copy
from functools import cache

import torch

import norton


@cache
def _randomised(arch: str, rank: int) -> torch.nn.Module:
    return randomise_(norton.build(arch, rank))


def randomised(arch: str, rank: int = 0) -> torch.nn.Module:
    """A published network as `randomise_` leaves it: drawn once, as millions of numbers take their time."""
    return copy.deepcopy(_randomised(arch, rank))


def randomise_(net: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter and BatchNorm statistic values that keep activations of order one, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + noise.abs())
        elif name.endswith(("bias", "running_mean")):
            tensor.copy_(0.1 * noise)
        elif tensor.dim() == 1:
            tensor.copy_(1 + 0.1 * noise)
        elif ".feature." in name:
            tensor.copy_(noise * tensor.std())  # as its initialisation has it
        else:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
    return net.eval()
