"""Layers that users declare: recorded as one operation, cut exactly, scored, left whole by decompositions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn

import norton
from norton.graph import declare
from norton.graph.slicing import cut_

pytestmark = pytest.mark.quick


class Mixing(nn.Module):
    """Reads and writes channels by a matrix with what it reads first, computed in a way that no rule knows."""

    def __init__(self, inputs, filters, bias=True):
        super().__init__()
        self.inputs, self.filters = inputs, filters
        self.matrix = nn.Parameter(torch.randn(inputs, filters))
        self.offset = nn.Parameter(torch.randn(filters)) if bias else None

    def forward(self, x):
        assert x.shape[1] == self.inputs
        y = torch.tensordot(x, self.matrix, ([1], [0])).movedim(-1, 1)
        return y if self.offset is None else y + self.offset.view(1, self.filters, 1, 1)


class Narrower(Mixing):
    """Derived from a declared layer."""


class Gate(nn.Module):
    """Passes channels, with layers inside."""

    def __init__(self, width):
        super().__init__()
        self.down, self.up = nn.Linear(width, 4), nn.Linear(4, width)

    def forward(self, x):
        return x * torch.cumsum(self.up(self.down(x.mean((2, 3)))), 0)[:, :, None, None]


class Rows(nn.Conv2d):
    """Derived from a layer of torch, but with a forward pass of its own; channels come last."""

    def forward(self, x):
        return torch.tensordot(x, self.weight.sum((2, 3)), ([-1], [1])) + self.bias


class Histogram(nn.Module):
    """Only reads."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Parameter(torch.randn(width, 4, 5))

    def forward(self, x):
        return torch.tensordot(x.mean((2, 3)), self.table, ([1], [0])).cumsum(2).flatten(1)


READS_AND_WRITES = {"reads": {"matrix": 0, "inputs": None}, "writes": {"matrix": 1, "offset": 0, "filters": None}}
declare(Mixing, **READS_AND_WRITES)
declare(Gate, passes={"down.weight": 1, "up.weight": 0, "up.bias": 0, "down.in_features": None})
declare(Rows, reads={"weight": 1}, writes={"weight": 0, "bias": 0, "out_channels": None}, dim=-1)
declare(Histogram, reads={"table": 0})


class Net(nn.Module):
    input_size = (3, 6, 6)

    def __init__(self, **layers):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(12, 5, 1), nn.Linear(5, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.fc(self.b(self.own(torch.tanh(self.a(x)))).mean((2, 3)))


class Residual(Net):
    def forward(self, x):
        return self.fc(self.b(self.own(x) + self.other(x)).mean((2, 3)))


class ChannelsLast(Net):
    def forward(self, x):
        return self.fc(self.b(self.own(torch.tanh(self.a(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).mean((2, 3)))


class Ended(Net):
    def forward(self, x):
        return self.own(torch.tanh(self.a(x)))


NETWORKS = {  # name → network, widths of the axes that can be pruned
    "reads and writes": (lambda: Net(own=Mixing(8, 12)), {"a": 8, "own": 12, "b": 5}),
    "derived, without an offset": (lambda: Net(own=Narrower(8, 12, bias=False)), {"a": 8, "own": 12, "b": 5}),
    "summed with a convolution": (
        lambda: Residual(own=Mixing(3, 12), other=nn.Conv2d(3, 12, 1)),
        {"own": 12, "b": 5},
    ),
    "passes": (lambda: Net(own=Gate(8), b=nn.Conv2d(8, 5, 1)), {"a": 8, "b": 5}),
    "derived from torch's, channels last": (lambda: ChannelsLast(own=Rows(8, 12, 3)), {"a": 8, "own": 12, "b": 5}),
    "only reads": (lambda: Ended(own=Histogram(8)), {"a": 8}),
}


def made(name):
    torch.manual_seed(0)
    net = NETWORKS[name][0]().double().eval()
    return net, norton.wiring_of(net), torch.randn(3, 3, 6, 6, dtype=torch.float64)


def dead(net, gone):
    """The network whose removed filters are zero, those of `Mixing` too, which the helper does not know."""
    net = with_dead_filters(
        net, {name: filters for name, filters in gone.items() if hasattr(net.get_submodule(name), "weight")}
    )
    for name, filters in gone.items():
        if isinstance(layer := net.get_submodule(name), Mixing):
            layer.matrix.data[:, filters] = 0
            if layer.offset is not None:
                layer.offset.data[filters] = 0
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_declared_layers_are_cut_exactly(name):
    net, wiring, x = made(name)
    free = {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in wiring.frozen}
    assert free == NETWORKS[name][1]
    keep = {wiring.axis_of(first): [0, *range(2, width, 2)] for first, width in free.items()}
    small = copy.deepcopy(net)
    cut_(small, wiring, keep)
    expected = outputs(dead(net, wiring.gone_filters(keep)), (x,))
    assert largest_error(outputs(small, (x,)), expected) < 1e-9
    assert largest_error(outputs(net, (x,)), expected) > 1e-3
    again = norton.wiring_of(small)
    assert {again.name(a): again.width(a) for a in again.writers if a not in again.frozen} == {
        wiring.name(axis): len(kept) for axis, kept in keep.items()
    }


@pytest.mark.parametrize("criterion", ["l2", "fpgm", "random"])
def test_its_filters_are_scored(criterion):
    net, _, _ = made("reads and writes")
    with torch.no_grad():
        net.own.matrix[:, [2, 3, 7]] *= 1e-3
    options = norton.PruneOptions(min_filters=1)
    small = norton.prune(net, {"own": 0.25}, criterion=criterion, options=options)
    assert small.own.matrix.shape == (8, 9) and small.own.filters == 9 and small.b.in_channels == 9
    if criterion == "l2":
        kept = [0, 1, 4, 5, 6, 8, 9, 10, 11]
        torch.testing.assert_close(small.own.matrix, net.own.matrix[:, kept])
        torch.testing.assert_close(small.own.offset, net.own.offset[kept])


def test_maps_of_its_filters_are_scored():
    net, _, x = made("derived from torch's, channels last")
    small = norton.prune(net, {"own": 0.5}, criterion="hrank", images=x, options=norton.PruneOptions(min_filters=1))
    assert small.own.weight.shape[0] == small.own.out_channels == small.b.in_channels == 6


def test_decompositions_leave_it_whole_and_what_is_inside():
    net, _, _ = made("derived from torch's, channels last")
    net.gate = Gate(8).double()
    assert isinstance(norton.decompose(net, 1, method="svd").own, Rows)
    small = norton.decompose(net, 1, method="svd")
    assert type(small.gate.down) is nn.Linear and type(small.fc) is not nn.Linear


@pytest.mark.filterwarnings("ignore:.*norton.load will need")
def test_files_replay_it(tmp_path):
    net, _, x = made("reads and writes")
    small = norton.prune(net, 0.3, criterion="l2")
    again = norton.load(norton.save(small, tmp_path / "net.pt"), net=NETWORKS["reads and writes"][0]().double())
    assert largest_error(outputs(again, (x,)), outputs(small, (x,))) < 1e-9


class Shared(Net):
    """Reads the tensor of a declared layer elsewhere."""

    def forward(self, x):
        return super().forward(x) * self.own.matrix.cumsum(1).sum()


def test_a_tensor_that_is_read_elsewhere_keeps_the_layer_whole():
    whole = norton.wiring_of(Shared(own=Mixing(8, 12))).left_whole
    assert {"a", "own"} <= set(whole)
    assert "it reads own.matrix in another way" in whole["own"] or "takes a parameter of own" in whole["own"]


def test_what_does_not_fit_its_declaration_stays_whole():
    class Wide(Mixing):
        pass

    declare(Wide, reads={"matrix": 0, "inputs": None}, writes={"matrix": 1})  # forgets the offset and its number
    whole = norton.wiring_of(Net(own=Wide(8, 12))).left_whole
    assert set(whole) == {"a", "own", "fc"} and "own: it does not follow" in whole["own"]

    declare(Wide, reads={"matrix": 1}, writes={"matrix": 0, "offset": 0})  # the wrong way round
    assert "its matrix is declared with an entry per channel" in norton.wiring_of(Net(own=Wide(8, 12))).left_whole["a"]


BAD = {
    "no type": (lambda: declare(nn.ReLU(), passes={"weight": 0}), "declare takes a type of layers"),
    "no mapping": (lambda: declare(Gate, passes="weight"), "passes is 'weight'; give names and dimensions"),
    "no dimension": (lambda: declare(Gate, passes={"weight": "0"}), "passes has 'weight': '0'; give a dimension"),
    "both": (lambda: declare(Gate, passes={"up.bias": 0}, reads={"up.bias": 0}), "either passes channels, or reads"),
    "nothing": (lambda: declare(Gate), "declare what its layers read and write, or what they pass"),
    "no filters": (lambda: declare(Gate, writes={"width": None}), "writes names no tensor with a filter per channel"),
    "one dimension twice": (
        lambda: declare(Gate, reads={"up.weight": 0}, writes={"up.weight": 0}),
        "up.weight has what it reads and what it writes in the same place",
    ),
    "a dimension of another kind": (lambda: declare(Gate, passes={"up.bias": 0}, dim=None), "dim is None"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_declaration_is_refused_at_once(name):
    act, message = BAD[name]
    with pytest.raises(norton.InputError, match=message.replace("'", ".")) as error:
        act()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"weight": 0}, r"own \(Unfit\): declared with weight, which it does not have"),
        ({"offset.bias": 0}, r"own \(Unfit\): declared with offset.bias, which it does not have"),
        ({"offset": 1}, "offset is declared with channels in dimension 1, and has 1"),
        ({"inputs": 0}, "inputs is declared as a tensor, and is a int; give None"),
        ({"matrix": 0, "offset": None}, "offset is declared as a whole number, and is a Parameter"),
    ],
)
def test_a_declaration_that_does_not_fit_its_layers_is_refused_when_they_are_traced(places, message):
    class Unfit(Mixing):
        pass

    declare(Unfit, passes=places)
    with pytest.raises(norton.InputError, match=message):
        norton.wiring_of(Net(own=Unfit(8, 12)))
    declare(Unfit, writes={"offset": 0})
    with pytest.raises(norton.InputError, match="its filters are declared to be in offset, which is None"):
        norton.wiring_of(Net(own=Unfit(8, 12, bias=False)))


def test_a_tensor_that_is_computed_keeps_the_layer_whole():
    net = Net(own=Mixing(8, 12))
    nn.utils.parametrize.register_parametrization(net.own, "matrix", nn.Identity())
    whole = norton.wiring_of(net).left_whole
    assert whole["own"] == "own: the matrix of the ParametrizedMixing is no parameter or buffer"


def test_declaring_changes_nothing_else():
    x = torch.randn(1, 8, 4, 4)
    layer = Rows(8, 12, 3)
    assert F.conv2d(x, layer.weight, layer.bias).shape == (1, 12, 2, 2)
    assert set(norton.wiring_of(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3))).left_whole) == {"1"}
