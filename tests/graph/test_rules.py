"""The table of rules: one for each operation, and a new one is a function with a decorator."""

import pytest
import torch
from helpers.between import Between
from torch import nn

import norton
from norton.graph import argument, first_argument, located, value_of
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
    monkeypatch.delitem(RULES, "cumsum", raising=False)  # a page of the documents registers one
    assert norton.wiring_of(Cumulated()).left_whole["a"] == "cumsum in the forward pass: tracing does not follow it"
    monkeypatch.setitem(RULES, "cumsum", Rule(lambda tracer, node: tracer.input(node)))
    assert set(norton.wiring_of(Cumulated()).left_whole) == {"fc"}


@pytest.mark.parametrize("dim, whole", [(-3, True), (1, True), (-1, False), (3, False)])
@pytest.mark.parametrize("named", [False, True])
def test_a_rule_may_ask_for_a_dimension_in_any_form(monkeypatch, dim, whole, named):
    def along_another_dimension(tracer, node):
        x = tracer.input(node)
        dim = argument(node, 1, "dim") % value_of(first_argument(node)).dim()
        return x if x and dim not in x.dims else tracer.unknown(node, "it adds up channels")

    monkeypatch.setitem(RULES, "cumsum", Rule(along_another_dimension))
    net = Between(lambda _, x: torch.cumsum(x, dim=dim) if named else torch.cumsum(x, dim))
    assert ("first" in norton.wiring_of(net, (3, 8, 8)).left_whole) == whole


@torch.library.custom_op("norton_tests::relu", mutates_args=())
def running_sum(x: torch.Tensor) -> torch.Tensor:
    """A custom operator that is called as one of torch's functions is, and computes something else."""
    return x.cumsum(1)


@running_sum.register_fake
def _(x):
    return torch.empty_like(x)


def let_through(x):
    """A function that records see as one operation, with the last dimension first."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(let_through, (x,), x)
    return x.sort(2).values.movedim(3, 0)


def plain(x):
    """A function that is seen by what it calls."""
    return torch.relu(x) * 2


class Calling(Cumulated):
    def __init__(self, function):
        super().__init__()
        self.name = function.__name__ if function in (let_through, plain) else "running_sum"

    def forward(self, x):
        y = globals()[self.name](self.a(x))
        return self.fc(self.b(y.movedim(0, 3) if self.name == "let_through" else y).mean((2, 3)))


def shifted_back(tracer, node):
    """Where the channels of `let_through` are."""
    x = tracer.input(node)
    return None if x is None else located(x.along(1, 8), 2, 4)


@pytest.mark.parametrize(
    ("function", "follow"), [(running_sum, lambda tracer, node: tracer.input(node)), (let_through, shifted_back)]
)
def test_a_function_of_ones_own_is_followed_by_a_rule_of_its_own_alone(function, follow):
    assert {"a", "fc"} <= set(norton.wiring_of(Calling(function)).left_whole)
    norton.graph.rule(functions=[function])(follow)
    assert set(norton.wiring_of(Calling(function)).left_whole) == {"fc"}


def test_a_plain_function_needs_no_rule():
    assert set(norton.wiring_of(Calling(plain)).left_whole) == {"fc"}


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


def relu(x):
    """A function of a package of somebody's, which mixes channels, whatever its name says."""
    if torch.overrides.has_torch_function_unary(x):
        return torch.overrides.handle_torch_function(relu, (x,), x)
    return x.cumsum(1)


def test_a_package_is_not_torch_for_its_name(monkeypatch):
    monkeypatch.setattr(relu, "__module__", "torchnets.activations")
    left_whole = norton.wiring_of(Between(lambda net, x: relu(x)), (3, 8, 8)).left_whole
    assert left_whole["first"] == "relu in the forward pass: tracing does not follow it"
