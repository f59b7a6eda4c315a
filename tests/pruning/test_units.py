"""Filters that can only go in groups: what users name, least and rounded widths and the global rate count filters."""

import copy

import pytest
import torch
from torch import nn

import norton
from norton.cli.rows import width_rows
from norton.pruning import spared
from norton.pruning.allocation import Allocation, global_widths

pytestmark = pytest.mark.quick


def grouped(groups=4, filters=64, norm=None):
    """A convolution into one in groups, or into a GroupNorm, so that units of the first hold several filters."""
    torch.manual_seed(0)
    norms = [nn.GroupNorm(norm, filters)] if norm else []
    second = nn.Conv2d(filters, filters, 3, groups=groups)
    layers = [nn.Conv2d(3, filters, 3), *norms, second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Linear(filters, 10))
    net.input_size = (3, 16, 16)
    return net.eval()


def widths(net):
    return [layer.out_channels for layer in net if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("groups, named, message", [
    (4, "3", "0: filter 3 can only go with 0-15, which are one group; name them all"),
    (4, "16-31, 40", "0: filter 40 can only go with 32-47"),
    (2, "3, 60", "0: filter 3 can only go with 0-31"),
    (2, "0-30", "0: filter 0 can only go with 0-31"),
])  # fmt: skip
def test_part_of_a_group_cannot_be_named(groups, named, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(
            grouped(1, norm=groups),
            None,
            criterion="index",
            options=norton.PruneOptions(filters={"0": named}, min_filters=1),
        )


def test_whole_groups_that_are_named_go():
    net = grouped(16)
    small = norton.prune(
        net, None, criterion="index", options=norton.PruneOptions(filters={0: "16-31, 48-63"}, min_filters=1)
    )
    assert small.plan[-1]["keep"] == {"0": [0, 1, 2, 3, 8, 9, 10, 11]}
    assert torch.equal(small[0].weight, net[0].weight[[*range(16), *range(32, 48)]])
    masked = copy.deepcopy(net)
    for gone in (slice(16, 32), slice(48, 64)):
        for layer in masked[:2]:
            layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)


def test_the_same_filters_go_from_each_of_a_few_large_groups():
    """Finer than whole groups: 16 units of 4 filters, and the layer before has units of its own."""
    net = grouped(4)
    wiring = norton.wiring_of(net)
    assert [(wiring.name(axis), wiring.width(axis), wiring.filters(axis)) for axis in list(wiring.writers)[:2]] == [
        ("0", 16, [4]), ("1", 16, [4])
    ]  # fmt: skip
    small = norton.prune(net, {"0": 0.5, "1": 0.25}, criterion="random")
    assert (small[1].in_channels, small[1].out_channels, small[1].groups) == (32, 48, 4)
    keep, masked = small.plan[-1]["keep"], copy.deepcopy(net)
    for layer, name in ((masked[0], "0"), (masked[1], "1")):
        gone = [filter for filter in range(64) if filter % 16 not in keep[name]]
        layer.weight.data[gone], layer.bias.data[gone] = 0, 0
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(small(x), masked(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(small(x), net(x), atol=1e-3)


def test_where_a_unit_is_one_filter_of_one_layer_and_two_of_another():
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 24, 3, groups=12), nn.ReLU(), nn.Conv2d(24, 9, 1))
    net.input_size = (3, 16, 16)
    wiring = norton.wiring_of(net)
    assert wiring.filters(wiring.axis_of("0")) == wiring.filters(wiring.axis_of("1")) == [1, 2]
    by_one = norton.prune(net, None, criterion="index", options=norton.PruneOptions(filters={"0": "3"}, min_filters=1))
    by_two = norton.prune(
        net, None, criterion="index", options=norton.PruneOptions(filters={"1": "6-7"}, min_filters=1)
    )
    assert by_one.plan == by_two.plan
    with pytest.raises(norton.InputError, match="1: filter 6 can only go with 6-7"):
        norton.prune(net, None, criterion="index", options=norton.PruneOptions(filters={"1": "6"}, min_filters=1))
    assert widths(norton.prune(net, 0.5, criterion="l2"))[:2] == [8, 16]  # 8 filters stay in either
    assert widths(norton.prune(net, 0.5, criterion="l2", options=norton.PruneOptions(min_filters=1, round_to=4)))[
        :2
    ] == [8, 16]


@pytest.mark.parametrize("groups, norm, units", [(1, 2, 2), (1, 4, 4), (8, None, 8), (1, 8, 8), (8, 2, 2)])
def test_groups_are_pruned_down_to_so_many_filters(groups, norm, units):
    net = grouped(groups, norm=norm)
    assert widths(norton.prune(net, 0.5, criterion="l2"))[0] == 32
    assert (
        widths(norton.prune(net, {"0": 0.9}, criterion="l2", options=norton.PruneOptions(min_filters=17)))[0]
        == {2: 32, 4: 32, 8: 24}[units]
    )
    assert widths(norton.prune(net, 0.9, criterion="l2"))[0] == 64 // units
    assert (
        widths(norton.prune(net, 0.3, criterion="l2", options=norton.PruneOptions(round_to=16)))[0]
        == {2: 32, 4: 32, 8: 48}[units]
    )


def test_the_global_rate_is_of_filters():
    net = nn.Sequential(*grouped(8)[:3], nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 1))
    net.input_size = (3, 16, 16)
    small = norton.prune(net, 0.5, criterion="random", options=norton.PruneOptions(allocation="global"))
    first, second, third, _ = widths(small)
    assert first == second and 64 - 16 < first + third <= 64  # the last group that goes may exceed the rate
    assert third >= 8


def test_a_global_threshold_counts_filters():
    scores = {0: torch.tensor([1.0, 5.0, 6.0]).numpy(), 1: torch.arange(2.0, 22).numpy()}
    assert global_widths(scores, 0.25, 4, {0: 10}) == {0: 2, 1: 17}  # 13 of 50 go: a unit of 10, then three
    assert global_widths(scores, 0.2, 4, {0: 10}) == {0: 2, 1: 20}
    assert global_widths(scores, 0.38, 11, {0: 10}) == {0: 2, 1: 11}  # all that can go
    with pytest.raises(norton.InputError, match=r"0\.6 of 50 filters are 30, with min_filters=11 only 19 can go"):
        global_widths(scores, 0.6, 11, {0: 10})


@pytest.mark.parametrize(
    "filters, least, step", [((1,), 8, 6), ((4,), 2, 3), ((3,), 3, 2), ((1, 2), 8, 6), ((16,), 1, 3)]
)
def test_least_and_step_of_units(filters, least, step):
    how = Allocation(0.5, options=norton.PruneOptions(round_to=6))
    assert how.least_units(filters) == least
    assert how.step(filters) == step


def test_a_network_that_stays_whole_says_so():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 10, 3))
    net.input_size = (3, 16, 16)
    with pytest.warns(UserWarning, match="nothing is removed.*0: it has 8 filters, and min_filters=8 stay"):
        norton.prune(net, 0.5, criterion="l2")


def test_what_the_settings_spare_is_told():
    net = nn.Sequential(
        *grouped(1, norm=2)[:2], nn.Conv2d(64, 12, 3), nn.ReLU(), nn.Conv2d(12, 40, 3), nn.Conv2d(40, 4, 3)
    )
    net.input_size = (3, 16, 16)
    found = spared(
        net, norton.wiring_of(net), 0.1, options=norton.PruneOptions(min_filters=33, round_to=32, rounding="up")
    )
    assert found == {
        "0": "it has 64 filters in groups of 32, and min_filters=33 stay",
        "2": "it has 12 filters, and min_filters=33 stay",
        "4": "round_to=32 takes its width back to all 40",
    }
    assert spared(net, norton.wiring_of(net), 0.1, options=norton.PruneOptions(min_filters=1)) == {}
    assert set(
        spared(net, norton.wiring_of(net), 0.1, options=norton.PruneOptions(allocation="global", min_filters=33))
    ) == {"0", "2"}


def test_tables_count_filters():
    net = grouped(16)
    row = width_rows(net, norton.prune(net, 0.5, criterion="l2"))[0]
    assert row == {"layer": "0 (+1 tied)", "kind": "dense", "before": 64, "after": 32}


@pytest.mark.parametrize("filters, message", [
    ({"0": 3.0}, r"0: cannot read 3\.0"),
    ({"0": {"3": 1}}, "0: cannot read"),
    ("0: 3", "filters is '0: 3'; give"),
    ([3], r"filters is \[3\]"),
    ({"5": "1"}, "'5' cannot be pruned, because it is the network's output; those that can are 0, 1"),
    ({"3": "1"}, "'3' cannot be pruned, because it has no filters"),
])  # fmt: skip
def test_filters_that_cannot_be_read(filters, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(grouped(), None, criterion="index", options=norton.PruneOptions(filters=filters))
