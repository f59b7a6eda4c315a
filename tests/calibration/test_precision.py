"""Networks in half precision are fitted in float32, and stay in half precision."""

import pytest
import torch
from helpers.networks import randomise_
from helpers.residual import Residual, calibration_images
from torch import nn

import norton
from norton.calibration.precision import as_float32, rounded_like_

pytestmark = pytest.mark.quick

HALVES = (torch.float16, torch.bfloat16)
OPTIONS = norton.PruneOptions(min_filters=1, compensate="outputs")


@pytest.fixture
def images() -> torch.Tensor:
    return calibration_images(48).half().bfloat16().float()  # the same in each precision


def precisions(net: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in net.state_dict().values() if tensor.is_floating_point()}


def assert_rounded(small: nn.Module, expected: nn.Module, dtype: torch.dtype) -> None:
    """All that one network holds is what the other holds, rounded to a precision."""
    assert precisions(small) == {dtype}
    assert {"training": small.training} | {key: x.requires_grad for key, x in small.named_parameters()} == (
        {"training": expected.training} | {key: x.requires_grad for key, x in expected.named_parameters()}
    )
    for key, value in expected.state_dict().items():
        assert torch.equal(small.state_dict()[key], value.to(dtype) if value.is_floating_point() else value), key


@pytest.mark.parametrize("dtype", HALVES)
def test_decomposed_as_in_float32(dtype, images):
    net = randomise_(Residual()).to(dtype)
    net.conv1.weight.requires_grad_(False)
    expected = norton.decompose(as_float32(net), 2, method="tucker", objective="outputs", images=images)
    weights = norton.decompose(net, 2, method="tucker")
    for given in (images, [images.to(dtype)]):
        small = norton.decompose(net, 2, method="tucker", objective="outputs", images=given)
        assert_rounded(small, expected, dtype)
    assert not torch.equal(small.conv2.composed_weight(), weights.conv2.composed_weight())
    assert precisions(net) == {dtype}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("decomposed", [False, True])
def test_compensated_as_in_float32(dtype, decomposed, images):
    net = randomise_(Residual()).to(dtype)
    net = norton.decompose(net, 2, method="svd") if decomposed else net
    expected = norton.prune(as_float32(net), 0.5, criterion="l2", options=OPTIONS, images=images)
    small = norton.prune(net, 0.5, criterion="l2", options=OPTIONS, images=images.to(dtype))
    assert_rounded(small, expected, dtype)
    assert sum(p.numel() for p in small.parameters()) < 0.9 * sum(p.numel() for p in net.parameters())


def test_ranks_for_a_budget_as_in_float32(images):
    net, how = randomise_(Residual()).half(), {"macs": 0.5, "decomposition": norton.DecomposeOptions("tucker")}
    expected = norton.choose_ranks(as_float32(net), images, **how)
    assert norton.choose_ranks(net, images.half(), **how).ranks == expected.ranks


def test_a_layer_that_stays_in_float32():
    """Parts have the precision of what they take the place of; other networks stay the very same."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3).half(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3).bfloat16())
    small = rounded_like_(norton.decompose(as_float32(net), 2, method="tucker"), net)
    found = [{tensor.dtype for tensor in layer.parameters()} for layer in small]
    assert found == [{torch.float16}, {torch.float32}, {torch.bfloat16}]
    assert small[1].num_batches_tracked.dtype == torch.long
    double = nn.Conv2d(3, 8, 3).double()
    assert as_float32(double) is double and rounded_like_(double, double).weight.dtype == torch.float64


def test_images_of_another_precision(images):
    net = randomise_(Residual()).half()
    with pytest.raises(norton.InputError, match=r"images are torch.float64, the network torch.float16; give both"):
        norton.decompose(net, 1, objective="outputs", images=images.double())
