"""What several tests need: small inputs, random networks whose BatchNorm does something."""

import os
from pathlib import Path

import pytest
import torch

from norton.deployment import search

# On a busy machine two threads wait for each other longer than they compute, on tensors this small.
torch.set_num_threads(int(os.environ.get("NORTON_TEST_THREADS", "1")))

REPOSITORY = Path(__file__).resolve().parent.parent
ARCHITECTURES = ["vgg_16_bn", "resnet_56", "resnet_110", "densenet_40", "resnet_50"]


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


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    """Whatever is chosen in deploying has to be right; how well it was timed does not matter in tests."""
    monkeypatch.setattr(search, "DEFAULT_BUDGET", search.SearchBudget(layer_seconds=0, trials=1))


@pytest.fixture
def images():
    """Four random images of a size."""

    def make(size: int = 32) -> torch.Tensor:
        return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))

    return make
