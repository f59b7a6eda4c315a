"""What tracing finds is cut exactly, and what it cannot follow is left whole."""

import pytest
import torch
from helpers.cutting import CHOICES, check_exact, dead_outputs, outputs_without_offsets, pruned, randomised, wired
from helpers.hand_made import HAND_MADE, Net, conv, layers
from helpers.repository import ARCHITECTURES
from torch import nn

import norton
from norton.graph.tracing import trace_wiring

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made(name):
    net, wiring, widths = wired(HAND_MADE, name)
    x = torch.randn(3, *net.input_size, dtype=torch.float64)
    if not widths:
        with pytest.raises(norton.InputError, match=r"none of its . channel axes can be pruned"):
            norton.prune(net, 0.3, criterion="l2")
        return
    for choice in CHOICES:
        small, keep = pruned(net, wiring, choice)
        check_exact(net, wiring, small, keep, x)
        small.train()(x).sum().backward()
        assert all(len(keep[wiring.axis_of(layer)]) == int(width * 0.7) for layer, width in widths.items())


def test_the_oracles_see_a_wrong_offset():
    """Cutting what a flattened channel's neighbour reads must show."""
    make, _, _ = HAND_MADE["flatten"]
    net = randomised(make().double())
    wiring = norton.wiring_of(net)
    small, keep = pruned(net, wiring, "at random")
    wrong = {axis: [(unit + 1) % wiring.width(axis) for unit in kept] for axis, kept in keep.items()}
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with pytest.raises(AssertionError):
        check_exact(net, wiring, small, wrong, x)
    y = outputs_without_offsets(small, x)
    assert torch.allclose(y, dead_outputs(net, wiring, keep, x))
    assert not torch.allclose(y, dead_outputs(net, wiring, wrong, x))


# Declared networks


def as_sets(wiring):
    """A wiring without its numbering: axes as the sets of their writers."""

    def named(channels):
        places = zip(wiring.axis_at(channels).tolist(), wiring.unit_at(channels).tolist(), strict=True)
        return tuple((frozenset(wiring.writers.get(axis, ())), unit) for axis, unit in places)

    axes = {frozenset(names): wiring.width(axis) for axis, names in wiring.writers.items()}
    passes, reads = ({(name, named(x)) for name, x in part} for part in (wiring.passes, wiring.reads))
    shifts = {tuple(frozenset(wiring.writers[axis]) for axis in edge) for edge in wiring.shifts}
    return axes, passes, reads, shifts, set(wiring.left_whole)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rank", [0, 2])
def test_tracing_agrees_with_the_declaration(arch, rank):
    rates = {"vgg_16_bn": "[0.3]*13", "resnet_50": "[0.2]*20"}.get(arch, "[0.2]+[0.4]*2+[0.3]*60")
    for compress_rate in (None, rates):
        with torch.device("meta"):
            net = norton.build(arch, rank, compress_rate)
        assert as_sets(trace_wiring(net)) == as_sets(net.wiring())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_number_prunes_declared_networks(arch):
    net = norton.build(arch)
    small = norton.prune(net, 0.3, criterion="l2")
    assert norton.complexity(small).macs < 0.7 * norton.complexity(net).macs
    assert small(torch.randn(2, *net.input_size)).shape == (2, net.num_classes)


# What people get wrong


def plain(m, x):
    return m.fc(m.b(m.a(x).relu()).mean([2, 3]))


def decides(m, x):
    y = m.a(x)
    return m.fc((m.b(y) if y.sum() > 0 else y).mean([2, 3]))


@pytest.mark.parametrize("run, options, message", [
    (decides, {}, r"takes no input .*test_tracing\.py:\d+ .*y\.sum\(\) > 0.*needs values: pass example=.*wiring\(\)"),
    (lambda m, x: m.fc(m.b(m.a(x)).flatten(1)), {}, r"size 3×16×16: layer fc, .*example="),
    (lambda m, x: m.fc(m.b(m.a(x)).mean([2, 3])), {"example": (1, 16, 16)}, r"size 1×16×16: layer a, .*example="),
])  # fmt: skip
def test_networks_that_cannot_be_traced(run, options, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(Net(run, **layers()), 0.3, criterion="l2", **options)


class Sizeless(nn.Sequential):
    pass


def test_an_example_says_the_size(tmp_path):
    net = Sizeless(conv(3, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 12 * 12, 4))
    with pytest.raises(norton.InputError, match=r"takes no input of size 3×224×224, .*example="):
        norton.prune(net, 0.3, criterion="l2")
    x = torch.randn(1, 3, 12, 12)
    small = norton.prune(net, 0.3, criterion="l2", example=x, options=norton.PruneOptions(min_filters=1)).eval()
    assert small[3].in_features == 5 * 144
    assert torch.equal(norton.load(norton.save(small, tmp_path / "a.pt"), net=net)(x), small(x))


@pytest.mark.parametrize("stated", [32, (32, 32), "32", None])
def test_a_stated_size_that_is_none(stated, tmp_path):
    net = HAND_MADE["plain"][0]()
    net.input_size = stated
    small = norton.prune(net, 0.3, criterion="l2", options=norton.PruneOptions(min_filters=1))
    assert (small.a.out_channels, small.b.out_channels) == (5, 5)
    with pytest.raises(norton.InputError, match=r"input_size=|cannot take an input of size"):
        norton.complexity(net)
    assert torch.equal(norton.load(norton.save(small, tmp_path / "a.pt"), net=net).b.weight, small.b.weight)


@pytest.mark.parametrize("example", [32, (3, 32.0, 32), (), (3, 0, 32)])
def test_a_bad_example(example):
    with pytest.raises(norton.InputError, match=r"example is .*give an input, its size"):
        norton.prune(HAND_MADE["plain"][0](), 0.3, criterion="l2", example=example)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_a_weight_that_a_hook_computes_stays_whole():
    normed = nn.utils.prune.random_unstructured(nn.utils.weight_norm(conv(8, 8)), "weight_v", 0.3)
    net, x = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 8), nn.ReLU(), normed).eval(), torch.randn(2, 3, 8, 8)
    wanted = net(x)  # after which torch does not copy it
    assert {"2", "4"} <= norton.wiring_of(net).left_whole.keys()
    small = norton.prune(net, 0.5, criterion="l2", options=norton.PruneOptions(min_filters=1))
    [(layer, kept)] = small.plan[-1]["keep"].items()
    assert layer == "0" and len(kept) == 8
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias):
            tensor[[channel for channel in range(16) if channel not in kept]] = 0
    torch.testing.assert_close(small(x), net(x))
    assert not torch.allclose(small(x), wanted)


def test_the_mode_that_cannot_be_traced():
    net = Net(lambda m, x: plain(m, x) if m.training else decides(m, x), **layers())
    with pytest.raises(norton.InputError, match=r"in evaluation mode: .*y\.sum\(\) > 0"):
        norton.prune(net, 0.3, criterion="l2")


@pytest.mark.parametrize("rate, message", [
    ("[0.3]*4", "has no published list of rates"),
    (1.5, "at least 0 and below 1"),
    (float("nan"), "at least 0 and below 1"),
])  # fmt: skip
def test_bad_rates(rate, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(HAND_MADE["plain"][0](), rate, criterion="l2")
