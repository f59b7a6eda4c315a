"""Networks and images that ranks are chosen for."""

import pytest
import torch
import torch.nn.functional as F
from helpers.budgets import Toy
from helpers.networks import randomise_

import norton


@pytest.fixture(scope="module")
def toy():
    return randomise_(Toy())


@pytest.fixture(scope="module")
def images():
    smooth = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(smooth, (11, 11), mode="bilinear")


@pytest.fixture(scope="module")
def narrow():
    """Thirteen convolutions, few filters."""
    return randomise_(norton.build("vgg_16_bn", 0, [0.9] * 13))
