"""The table of rules: one for each operation, and a new one is a function with a decorator."""

import torch
from torch import nn

import norton
from norton.graph.layers import ELEMENTWISE_LAYERS, NORM_LAYERS
from norton.graph.rules import table
from norton.graph.rules.table import LAYER_RULES, RULES, Rule, rule, rule_of_layer


class Cumulated(nn.Module):
    """An operation between two convolutions that no rule knows."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.b(torch.cumsum(self.a(x), 3)).mean((2, 3)))


def test_a_rule_of_ones_own_is_followed(monkeypatch):
    assert norton.wiring_of(Cumulated()).left_whole["a"] == "cumsum in the forward pass: tracing does not follow it"
    monkeypatch.setitem(RULES, "cumsum", Rule(lambda tracer, node: tracer.input(node)))
    assert set(norton.wiring_of(Cumulated()).left_whole) == {"fc"}


def test_the_decorator_registers_names_and_types(monkeypatch):
    monkeypatch.setattr(table, "RULES", {})
    monkeypatch.setattr(table, "LAYER_RULES", {})

    @rule("one other", layers=[nn.Softmax2d], joins=True)
    def follow(tracer, node):
        return None

    assert dict.fromkeys(("one", "other"), Rule(follow, joins=True)) == table.RULES
    assert table.rule_of_layer(nn.Softmax2d()) == Rule(follow, joins=True)


def test_a_rule_is_that_of_the_layers_nearest_type():
    class Own(nn.ReLU):
        pass

    assert rule_of_layer(Own()) is LAYER_RULES[nn.ReLU]
    assert rule_of_layer(nn.Bilinear(2, 2, 2)) is None
    small = norton.decompose(nn.Sequential(nn.Conv2d(4, 4, 3)), 1)
    assert rule_of_layer(small[0]) is LAYER_RULES[nn.Conv2d]
    assert set(LAYER_RULES) > {*ELEMENTWISE_LAYERS, *NORM_LAYERS}
