"""Rules that fail: channels stay whole for users, and tests fail where the rule is one of ours."""

import pytest
import torch
from torch import nn

import norton
from norton.graph import tracing
from norton.graph.rules import RULES

pytestmark = pytest.mark.quick


def net():
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), Half(), nn.Conv2d(6, 4, 1))


class Half(nn.Module):
    def forward(self, x):
        return torch.erf(x)


def failing(tracer, node):
    raise IndexError("tuple index\nout of range")


@pytest.fixture
def rule_of_erf(monkeypatch):
    monkeypatch.setitem(RULES, "erf", RULES.get("erf"))
    norton.graph.rule("erf")(failing)


@pytest.mark.parametrize("strict", [False, True])
def test_a_rule_of_a_user_keeps_channels_and_is_named(rule_of_erf, monkeypatch, strict):
    monkeypatch.setattr(tracing, "RAISES_FAULTS", strict)
    found = norton.wiring_of(net(), (3, 8, 8)).left_whole
    assert set(found) == {"1", "3"}
    assert found["1"] == "erf in 2: its rule failing fails: tuple index"


def test_a_rule_of_ours_keeps_channels_but_in_tests(rule_of_erf, monkeypatch):
    monkeypatch.setattr(failing, "__module__", "norton.graph.rules.elementwise")
    with pytest.raises(IndexError):
        norton.wiring_of(net(), (3, 8, 8))
    monkeypatch.setattr(tracing, "RAISES_FAULTS", False)
    found = norton.wiring_of(net(), (3, 8, 8)).left_whole
    assert set(found) == {"1", "3"} and found["1"] == "erf in 2: tracing does not follow it"
