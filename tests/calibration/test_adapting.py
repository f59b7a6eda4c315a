"""What becomes of BatchNorm: each of three ways wins where it should."""

import copy

import pytest
import torch
from torch import nn

from norton.calibration import adapt_batchnorm_, move_means_, reestimate_batchnorm_
from norton.common.errors import InputError


def images(count, contrast=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return contrast * torch.randn(count, 3, 8, 8, generator=generator)


def pieces(outputs=5):
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
    return nn.Sequential(conv, norm, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, outputs))


@pytest.fixture
def dense():
    return reestimate_batchnorm_(pieces(), images(2000, seed=5)).eval()


def adapted(dense, change, fitting):
    small = copy.deepcopy(dense)
    with torch.no_grad():
        change(small[0])
    return small, adapt_batchnorm_(small, dense, fitting, images(200, seed=2))


def test_what_is_exact_is_left(dense):
    """A few images say less than what training left."""
    small, found = adapted(dense, lambda conv: None, images(20, seed=1))
    assert found.choice == "leave" and found.errors["leave"] == 0 < min(
        found.errors["means"], found.errors["reestimate"]
    )
    assert all(torch.equal(a, b) for a, b in zip(small.state_dict().values(), dense.state_dict().values(), strict=True))


def test_means_are_moved_where_offsets_are_off(dense):
    """Images of three times the contrast, as an augmentation may give them: their variances would be wrong."""
    small, found = adapted(dense, lambda conv: conv.bias.add_(5), images(500, contrast=3, seed=1))
    assert found.choice == "means" and found.errors["means"] < 0.2 * min(
        found.errors["leave"], found.errors["reestimate"]
    )
    torch.testing.assert_close(small[1].running_mean, dense[1].running_mean + 5, atol=0.2, rtol=0)
    assert torch.equal(small[1].running_var, dense[1].running_var)


def test_statistics_are_estimated_again_where_scales_are_off(dense):
    def change(conv):
        conv.weight.mul_(4)
        conv.bias.mul_(4)

    small, found = adapted(dense, change, images(500, seed=1))
    assert found.choice == "reestimate" and found.errors["reestimate"] < 0.1 * min(
        found.errors["leave"], found.errors["means"]
    )
    torch.testing.assert_close(small[1].running_var, 16 * dense[1].running_var, rtol=0.1, atol=0)
    assert "BatchNorm estimated again: relative error of the outputs" in str(found)


def test_errors_are_relative_to_what_images_change(dense):
    """Against the sums written out."""
    small = copy.deepcopy(dense)
    with torch.no_grad():
        small[4].bias.add_(0.5)
    fresh = images(50, seed=3)
    found = adapt_batchnorm_(small, dense, images(100), fresh)
    with torch.no_grad():
        t = dense(fresh).double()
    expected = 50 * 5 * 0.25 / ((t - t.mean(0)) ** 2).sum().item()
    assert found.errors["leave"] == pytest.approx(expected, rel=1e-4)


def test_means_are_those_of_what_arrives():
    """Each norm's mean is that of its input, with the norms before it as they are now: computed one after the other."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)).eval()
    for norm in (net[1], net[4]):
        norm.running_var.uniform_(0.5, 2)
    x = images(64)
    by_hand = copy.deepcopy(net)
    with torch.no_grad():
        for place in (1, 4):
            by_hand[place].running_mean.copy_(by_hand[:place](x).mean((0, 2, 3)))
    move_means_(net, x)
    for place in (1, 4):
        torch.testing.assert_close(net[place].running_mean, by_hand[place].running_mean)
        assert torch.equal(net[place].running_var, by_hand[place].running_var)


def test_nothing_to_decide():
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    assert adapt_batchnorm_(plain, plain, images(8), images(8)) is None


def test_outputs_that_cannot_be_compared_leave_all_as_it_is(dense):
    other = pieces(outputs=4)
    before = copy.deepcopy(other.state_dict())
    assert adapt_batchnorm_(other, dense, images(8), images(8)) is None
    assert all(torch.equal(before[key], value) for key, value in other.state_dict().items())


def test_one_image_is_too_few(dense):
    with pytest.raises(InputError, match="cannot be re-estimated from 1 images; use a few hundred"):
        adapt_batchnorm_(copy.deepcopy(dense), dense, images(1), images(8))


def test_an_undefined_error_is_never_the_least(dense):
    """Report: weights so large that the outputs as they are are undefined, and BatchNorm was left so."""
    _, found = adapted(dense, lambda conv: conv.weight.mul_(float("inf")), images(50, seed=1))
    assert found.errors["leave"] != found.errors["leave"]
    _, found = adapted(dense, lambda conv: conv.weight.mul_(1e30), images(50, seed=1))
    assert found.choice == "reestimate" and found.errors["reestimate"] < 10
