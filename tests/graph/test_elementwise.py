"""Operations on each number for itself, as functions, methods, operators, in place, scripted; each as a gate."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers.between import Between, wiring_of_exact

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that torch.jit is old; public networks have it

    @torch.jit.script
    def scripted_mish(x):
        return x.mul(F.softplus(x).tanh())

    @torch.jit.script
    def scripted_gate(a, b):
        return torch.sigmoid(a) * torch.tanh(b)

    @torch.jit.script
    def scripted_softmax(x):
        return torch.softmax(x, 1)


GATES = {
    "a power of 2": lambda x: 2**x,
    "of a remainder": lambda x: (3 % (x.abs() + 1)) // 0.1,
    "of masks": lambda x: (~((x > 0) & (x < 0.5)) ^ (x > 0.7)).int().cpu(),
    "in place": lambda x: x.clone().exp_().sqrt_().add_(1).log_().atan_().floor_divide_(0.1),
    "tanhshrink": lambda x: F.tanhshrink(x) + F.logsigmoid(x) + F.threshold(x.clone(), 0.1, 0.2, inplace=True),
    "special": lambda x: torch.special.expit(x) + torch.special.erfcx(x) + torch.polygamma(1, x.abs() + 1),
    "of two": lambda x: torch.logaddexp(x, x.sin()) + torch.copysign(x + 1, x) + torch.xlogy(x, x.abs() + 1),
    "limits": lambda x: x.clamp_min(0.1).nan_to_num_().requires_grad_(False),
    "scripted": scripted_mish,
    "scripted of two": lambda x: scripted_gate(x, x.flip(3)),
}


@pytest.mark.parametrize("what", GATES)
def test_channels_stay_where_they_are(what):
    wiring = wiring_of_exact(lambda: Between(lambda net, x: x * GATES[what](x)))
    assert set(wiring.left_whole) == {"head"}


def test_scripted_code_that_mixes_channels_keeps_them():
    left_whole = wiring_of_exact(lambda: Between(lambda net, x: x * scripted_softmax(x))).left_whole
    assert set(left_whole) == {"first", "head"}
