"""Channels taken by the places that a buffer holds: they move, and the places are renumbered."""

import copy

import pytest
import torch
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn

import norton
from norton.graph.slicing import cut_

pytestmark = pytest.mark.quick

ORDER = [3, 0, 7, 1, 6, 2, 5, 4]


class Net(nn.Module):
    """Takes channels between two convolutions; `take` is one of the ways to write that."""

    input_size = (3, 6, 6)

    def __init__(self, take, places=ORDER, reads=None):
        super().__init__()
        self.take, self.plain = take, torch.tensor(places)
        self.register_buffer("order", torch.tensor(places))
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(reads or len(places), 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        return self.fc(torch.tanh(self.b(self.take(self, torch.tanh(self.a(x))))).mean((2, 3)))


def by_last(m, y):
    return y.permute(0, 2, 3, 1)[..., m.order].permute(0, 3, 1, 2)


def twice(m, y):
    return y[:, m.order][:, m.order]


def beside_the_whole(m, y):
    return torch.cat([y, y[:, m.order]], 1)


FOLLOWED = {  # name → network, widths of the axes that can be cut
    "in brackets": (lambda: Net(lambda m, y: y[:, m.order]), {"a": 8, "b": 6}),
    "in brackets, in full": (lambda: Net(lambda m, y: y[:, m.order, :, :]), {"a": 8, "b": 6}),
    "index_select": (lambda: Net(lambda m, y: y.index_select(1, m.order)), {"a": 8, "b": 6}),
    "index_select by names": (lambda: Net(lambda m, y: torch.index_select(y, dim=-3, index=m.order)), {"a": 8, "b": 6}),
    "channels last": (lambda: Net(by_last), {"a": 8, "b": 6}),
    "and of rows": (lambda: Net(lambda m, y: y[:, m.order].index_select(2, torch.tensor([3, 1, 0]))), {"a": 8, "b": 6}),
    "some of them": (lambda: Net(lambda m, y: y[:, m.order], [6, 1, 4]), {"a": 5, "a#2": 3, "b": 6}),
    "some of them twice": (lambda: Net(lambda m, y: y[:, m.order], [*ORDER, 2, 2, 5]), {"a": 6, "b": 6}),
    "beside the whole": (lambda: Net(beside_the_whole, reads=16), {"a": 8, "b": 6}),
    "a sum with the whole": (lambda: Net(lambda m, y: y + y[:, m.order], [1, 0, 3, 2, 5, 4, 7, 6]), {"a": 4, "b": 6}),
}


def made(make):
    torch.manual_seed(0)
    net = make().double().eval()
    return net, norton.wiring_of(net), torch.randn(3, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize("name", FOLLOWED)
@pytest.mark.parametrize("seed", [0, 1])
def test_channels_move_and_places_are_renumbered(name, seed):
    net, wiring, x = made(FOLLOWED[name][0])
    free = {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in wiring.frozen}
    assert {key: width for key, width in free.items() if width > 1} == FOLLOWED[name][1]
    draw = torch.Generator().manual_seed(seed)
    keep = {
        wiring.axis_of(first): torch.randperm(width, generator=draw)[: (width + 1) // 2].tolist()
        for first, width in free.items()
        if width > 1
    }
    if seed == 0:
        keep = {axis: sorted(kept) for axis, kept in keep.items()}
    small = copy.deepcopy(net)
    cut_(small, wiring, keep)
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), (x,))
    assert largest_error(outputs(small, (x,)), expected) < 1e-9
    assert largest_error(outputs(net, (x,)), expected) > 1e-3
    assert small.order.dtype == torch.int64 and int(small.order.max()) < small.a.out_channels < 8
    assert "order" in small.state_dict()


def test_places_are_those_of_what_stays():
    net, wiring, _ = made(FOLLOWED["in brackets"][0])
    cut_(net, wiring, {wiring.axis_of("a"): [0, 3, 4, 7]})
    assert net.order.tolist() == [1, 0, 3, 2]  # 3, 0, 7, 4 among 0, 3, 4, 7


@pytest.mark.filterwarnings("ignore:.*norton.load will need")
def test_a_pruned_network_goes_to_a_file_and_can_be_pruned_again(tmp_path):
    net, _, x = made(FOLLOWED["in brackets"][0])
    options = norton.PruneOptions(min_filters=1)
    small = norton.prune(net, 0.3, criterion="l2", options=options)
    again = norton.load(norton.save(small, tmp_path / "net.pt"), net=FOLLOWED["in brackets"][0]().double())
    assert again.order.tolist() == small.order.tolist() and len(small.order) == small.a.out_channels < 8
    assert largest_error(outputs(again, (x,)), outputs(small, (x,))) < 1e-9
    smaller = norton.prune(again, 0.3, criterion="l2", options=options)
    assert len(smaller.order) == smaller.a.out_channels < small.a.out_channels


WHOLE = {
    "a tensor in an attribute": lambda m, y: y[:, m.plain],
    "a list": lambda m, y: y[:, ORDER],
    "computed places": lambda m, y: y[:, m.order.flip(0)],
    "places of which some are taken": lambda m, y: y[:, m.order].index_select(2, m.order[:4] % 4),
    "places that are read elsewhere, too": lambda m, y: y[:, m.order] * m.order.float().mean(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_other_places_keep_their_channels(name):
    _, wiring, _ = made(lambda: Net(WHOLE[name]))
    assert {"a", "fc"} == set(wiring.left_whole)


def test_places_without_values_keep_their_channels():
    net, _, _ = made(FOLLOWED["in brackets"][0])
    assert "whose places are not known" in norton.wiring_of(net.to("meta")).left_whole["a"]
