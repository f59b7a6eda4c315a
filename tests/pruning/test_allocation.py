"""How many filters go where: rates, one threshold, least and rounded widths, tied layers, combinations, names."""

import itertools

import numpy as np
import pytest
import torch
from helpers.masking import mask_where_read, masks, outputs
from helpers.networks import randomise_
from helpers.repository import ARCHITECTURES

import norton
from norton.graph.wiring import Wiring
from norton.pruning import describe
from norton.pruning.allocation import Allocation, fitting_keep, global_widths, prunable, read_rates
from norton.pruning.scoring import Scoring, axis_scores, per_unit

RATES = "[0.]+[0.4]*2+[0.5]*27"


@pytest.fixture(scope="module")
def resnet():
    return randomise_(norton.build("resnet_56"))


def widths(net):
    wiring = net.wiring()
    return {wiring.name(axis): wiring.width(axis) for axis in prunable(wiring)}


def kept(net):
    return net.plan[-1]["keep"]


def literal_lamp(score):
    return [s * s / sum(t * t for t in score if t >= s) for s in score]


def test_slamp_is_its_formula():
    """Norms, squared over the sum of the squares at least as large; then one threshold."""
    net = randomise_(norton.build("vgg_16_bn"))
    convolutions = [name for name in net.wiring().writers.values() if "conv" in name[0]]
    scored = []
    for (name,) in convolutions:
        weight = net.get_submodule(name).weight
        norms = [sum(w * w for w in one.flatten().tolist()) ** 0.5 for one in weight]
        scored += [(value, name, o) for o, value in enumerate(literal_lamp(norms))]
    scored += [
        (value, "classifier.linear1", o)
        for o, value in enumerate(literal_lamp(net.classifier.linear1.weight.norm(dim=1).tolist()))
    ]
    scored.sort()
    going = len(scored) - int(len(scored) * 0.6)
    expected = {}
    for _, name, o in scored[going:]:
        expected.setdefault(name, []).append(o)
    small = norton.prune(
        net, 0.4, criterion="l2", options=norton.PruneOptions(normalisation="lamp", allocation="global", min_filters=1)
    )
    found = {name: kept(small).get(name, list(range(width))) for name, width in widths(net).items()}
    assert found == {name: sorted(filters) for name, filters in expected.items()}
    assert len(set(widths(small).values())) > 4  # it is not uniform


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.77])
def test_a_global_rate_is_met_exactly(rate):
    net = randomise_(norton.build("vgg_16_bn"))
    small = norton.prune(
        net, rate, criterion="l1", options=norton.PruneOptions(normalisation="standard", allocation="global")
    )
    total = sum(widths(net).values())
    assert sum(widths(small).values()) == int(total * (1 - rate))
    assert min(widths(small).values()) >= 8


def test_a_global_threshold_takes_the_lowest_but_the_least():
    generator = np.random.default_rng(0)
    scores = {axis: generator.random(n) + axis for axis, n in enumerate((5, 9, 20))}
    assert global_widths(scores, 0.5, 1) == {0: 1, 1: 1, 2: 15}
    assert global_widths(scores, 0.3, 8) == {0: 5, 1: 8, 2: 10}  # the first is narrower than 8
    with pytest.raises(norton.InputError, match=r"0\.5 of 34 filters are 17, with min_filters=8 only 13 can go"):
        global_widths(scores, 0.5, 8)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_one_number_prunes_every_layer_that_can_be(arch):
    net = norton.build(arch)
    small = norton.prune(net, 0.25, criterion="random", options=norton.PruneOptions(min_filters=1))
    classifier = [name for name, layer in net.named_modules() if isinstance(layer, torch.nn.Linear)][-1]
    assert classifier not in widths(net) and small.get_submodule(classifier).out_features == net.num_classes
    assert widths(small) == {name: int(width * 0.75) for name, width in widths(net).items()}
    with torch.no_grad():
        assert small.eval()(torch.zeros(2, *net.input_size)).shape == (2, net.num_classes)


def test_patterns_decide_first_match_first(resnet):
    rates = {"layer1.*.conv1": 0.5, "layer1.0.conv1": 0.9, "layer2.0.*": None, "layer2.*": 0.25}
    small, before = (
        norton.prune(resnet, rates, criterion="l2", options=norton.PruneOptions(min_filters=1)),
        widths(resnet),
    )
    for name, width in widths(small).items():
        rate = 0.5 if name.startswith("layer1.") and name.endswith("conv1") else 0.0
        rate = 0.25 if name.startswith("layer2.") and not name.startswith("layer2.0") else rate
        assert width == int(before[name] * (1 - rate)), name
    assert kept(small).keys() == {f"layer1.{i}.conv1" for i in range(9)} | {f"layer2.{i}.conv1" for i in range(1, 9)}


@pytest.mark.parametrize("width, now, settings, expected", [
    (50, 64, {}, 50),
    (5, 64, {}, 8),
    (5, 64, {"min_filters": 1}, 5),
    (3, 6, {}, 6),
    (50, 64, {"round_to": 8}, 48),
    (50, 64, {"round_to": 8, "rounding": "up"}, 56),
    (55, 64, {"round_to": 8, "rounding": "down"}, 48),
    (52, 64, {"round_to": 8, "rounding": "nearest"}, 56),
    (48, 64, {"round_to": 8, "rounding": "up"}, 48),
    (9, 64, {"round_to": 16, "rounding": "down"}, 16),
    (50, 60, {"round_to": 32, "rounding": "up"}, 60),
    (60, 60, {"round_to": 32, "rounding": "down"}, 60),
    (11, 12, {"round_to": 16, "rounding": "down"}, 12),
])  # fmt: skip
def test_widths_are_limited(width, now, settings, expected):
    assert Allocation(0.5, norton.PruneOptions(**settings)).limited(width, now) == expected


def test_a_published_list_stays_exact_and_may_be_limited(resnet):
    rates = "[0.]+[0.8]*2+[0.9]*27"
    small = norton.prune(resnet, rates)
    assert widths(small)["layer1.0.conv1"] == 1 and widths(small)["layer1.0.conv2"] == 3
    assert widths(norton.prune(resnet, rates, options=norton.PruneOptions(min_filters=4)))["layer1.0.conv1"] == 4


@pytest.mark.parametrize("allocation", ["rates", "global"])
@pytest.mark.parametrize("rounding", ["up", "down", "nearest"])
def test_rounded_networks_are_multiples_and_compute_what_masking_does(resnet, allocation, rounding, images):
    options = norton.PruneOptions(normalisation="lamp", allocation=allocation, round_to=4, rounding=rounding)
    small = norton.prune(resnet, 0.45, "l2", options=options)
    before = widths(resnet)
    assert all(width % 4 == 0 or width == before[name] for name, width in widths(small).items())
    assert all(width >= 8 for width in widths(small).values())
    twin = norton.prune(resnet, 0.0, criterion="l2")
    expected = outputs(mask_where_read(twin, masks(twin, kept(small))), images())
    torch.testing.assert_close(outputs(small, images()), expected, rtol=1e-9, atol=1e-9)


TIED = ["average", "sum", "union", "intersection"]


@pytest.mark.parametrize("tied", TIED)
@pytest.mark.parametrize("normalisation", ["none", "linear"])
def test_ties_by_hand(resnet, tied, normalisation):
    net, wiring = resnet, resnet.wiring()
    axis = wiring.axis_of("layer2.0.conv2")
    found = axis_scores(
        net, wiring, [axis], "l1", Scoring("l1", options=norton.PruneOptions(normalisation=normalisation, tied=tied))
    )[axis]
    assert len(wiring.writers[axis]) == 9
    for channel in range(32):
        each = []
        for name in wiring.writers[axis]:
            sizes = net.get_submodule(name).weight.double().abs().sum((1, 2, 3)).tolist()
            low, high = (min(sizes), max(sizes)) if normalisation == "linear" else (0, 1)
            each.append((sizes[channel] - low) / (high - low))
        expected = {"average": sum(each) / 9, "sum": sum(each), "union": max(each), "intersection": min(each)}
        assert found[channel] == pytest.approx(expected[tied], rel=1e-9)


def test_an_intersection_removes_what_both_would(resnet):
    a, b, both = (
        norton.prune(resnet, "[0.]*3+[0.5]*27", criterion=c) for c in ("l2", "fpgm", {"intersection": ["l2", "fpgm"]})
    )
    for name, width in widths(resnet).items():
        either = set(kept(a).get(name, range(width))) | set(kept(b).get(name, range(width)))
        assert kept(both).get(name, list(range(width))) == sorted(either)


@pytest.mark.parametrize("rates", [RATES, 0.4, "[0.4]+[0.]+[0.8]+[0.5]*27"])
def test_an_intersection_keeps_what_either_keeps_where_shortcuts_move_channels(resnet, rates, images):
    criterion = {"intersection": ["l2", "random"]}
    parts = [norton.prune(resnet, rates, criterion=c) for c in criterion["intersection"]]
    small = norton.prune(resnet, rates, criterion=criterion)
    for name, width in widths(resnet).items():
        for part in parts:
            assert set(kept(part).get(name, range(width))) <= set(kept(small).get(name, range(width)))
    twin = norton.prune(resnet, 0.0, criterion="l2")
    expected = outputs(mask_where_read(twin, masks(twin, kept(small))), images())
    torch.testing.assert_close(outputs(small, images()), expected, rtol=1e-9, atol=1e-9)


def test_a_weighted_sum_is_of_normalised_scores(resnet):
    wiring = resnet.wiring()
    axis = wiring.axis_of("layer1.3.conv1")

    def of(criterion):
        return axis_scores(
            resnet, wiring, [axis], criterion, Scoring(criterion, options=norton.PruneOptions(normalisation="linear"))
        )[axis]

    weighted = of({"weighted": {"l2": 0.7, "fpgm": 0.3}})
    np.testing.assert_allclose(weighted, 0.7 * of("l2") + 0.3 * of("fpgm"))
    assert (of({"weighted": {"l2": 1.0}}) == of("l2")).all()


def test_grouped_filters_count_together():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1, groups=2))
    wiring = Wiring(net)
    wiring.layer("1", wiring.layer("0", wiring.input(3)))
    assert per_unit(wiring, 0, "0", torch.tensor([1.0, 3.0, 5.0, 6.0])).tolist() == [2, 5.5]
    assert per_unit(wiring, 0, "1", torch.tensor([1.0, 3.0])).tolist() == [1, 3]


def test_units_need_not_be_neighbours():
    wiring = Wiring(torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1)))
    filters = wiring.layer("0", wiring.input(3))
    wiring.add(filters[:2], filters[2:4])  # as halves that meet; the last two stand alone
    scores = torch.tensor([1.0, 2.0, 5.0, 8.0, 7.0, 9.0])
    assert [per_unit(wiring, axis, "0", scores).tolist() for axis in wiring.writers] == [[3, 5], [7, 9]]


def test_named_filters_go_and_no_others(resnet):
    named = {"layer1.0.conv1": "3, 8, 11-13", "layer2.4.conv1": [0]}
    small = norton.prune(resnet, None, criterion="index", options=norton.PruneOptions(filters=named))
    gone = {"layer1.0.conv1": {3, 8, 11, 12, 13}, "layer2.4.conv1": {0}}
    assert kept(small).keys() == gone.keys()
    for name, width in widths(resnet).items():
        assert set(kept(small).get(name, range(width))) == set(range(width)) - gone.get(name, set())


def test_named_filters_go_whatever_the_rates_say(resnet):
    named = {"layer1.0.conv1": "0-11"}
    small = norton.prune(resnet, 0.25, criterion="index", options=norton.PruneOptions(filters=named))
    assert kept(small)["layer1.0.conv1"] == [12, 13, 14, 15]  # fewer than min_filters, and than the rate
    norms = resnet.layer1[1].conv1.weight.flatten(1).norm(dim=1)
    assert kept(small)["layer1.1.conv1"] == sorted(norms.argsort(descending=True)[:12].tolist())


@pytest.mark.parametrize("tied", TIED)
def test_a_named_filter_goes_from_all_layers_of_its_stream(resnet, tied, images):
    small = norton.prune(
        resnet, None, criterion="index", options=norton.PruneOptions(filters={"layer1.3.conv2": "5"}, tied=tied)
    )
    assert sorted(kept(small)["layer1.0.conv2"]) == [o for o in range(16) if o != 5]
    twin = norton.prune(resnet, 0.0, criterion="l2")
    expected = outputs(mask_where_read(twin, masks(twin, kept(small))), images())
    torch.testing.assert_close(outputs(small, images()), expected, rtol=1e-9, atol=1e-9)


def test_frozen_axes_stay_whole(resnet, monkeypatch):
    plain = type(resnet).wiring

    def wiring(self):
        found = plain(self)
        found.freeze(found.written("layer1.0.conv1"), "because")
        return found

    monkeypatch.setattr(type(resnet), "wiring", wiring)
    small = norton.prune(resnet, 0.5, criterion="l1")
    assert small.layer1[0].conv1.out_channels == 16 and small.layer1[1].conv1.out_channels == 8
    with pytest.raises(norton.InputError, match=r"'layer1\.0\.conv1' cannot be pruned"):
        norton.prune(resnet, None, criterion="index", options=norton.PruneOptions(filters={"layer1.0.conv1": "1"}))


def test_bound_widths_that_fit_are_met():
    generator = np.random.default_rng(0)
    now, edges = {0: 6, 1: 3, 2: 6}, [(0, 1), (1, 2)]
    scores = {axis: generator.random(width) for axis, width in now.items()}
    for wanted in itertools.product(*(range(1, width + 1) for width in now.values())):
        keep = fitting_keep(now, dict(enumerate(wanted)), scores, edges, "x", least=dict.fromkeys(now, 1))
        assert tuple(len(keep[axis]) for axis in now) == wanted
        assert all(len(set(channels)) == len(channels) for channels in keep.values())


@pytest.mark.parametrize("fits, step, expected", [
    (lambda a, b: a == 5, 1, (5, 6)),  # the nearest, and above the least
    (lambda a, b: a + b == 13, 1, (7, 6)),  # wider before narrower
    (lambda a, b: a >= 8 and b >= 8, 2, (8, 8)),
    (lambda a, b: a == 10, 1, (10, 10)),  # far away: both wider until it fits
    (lambda a, b: False, 1, (12, 10)),  # all stay
])  # fmt: skip
def test_bound_widths_move_to_the_nearest_that_fit(fits, step, expected, monkeypatch):
    def stub(now, targets, scores, edges, name):
        if not fits(*targets.values()):
            raise norton.InputError("no choice of channels fits")
        return {axis: list(range(width)) for axis, width in targets.items()}

    monkeypatch.setattr(norton.pruning.allocation, "aligned_keep", stub)
    keep = fitting_keep({0: 12, 1: 10}, {0: 6, 1: 6}, {}, [], "x", least={0: 5, 1: 6}, step=step)
    assert tuple(map(len, keep.values())) == expected


@pytest.mark.parametrize("criterion", sorted(norton.pruning.CRITERIA))
@pytest.mark.parametrize("rank", [0, 2])
def test_every_criterion_prunes_dense_and_decomposed(criterion, rank, images):
    net = randomise_(norton.build("resnet_56", rank))
    options = norton.PruneOptions(filters={"layer1.0.conv1": "1-8"} if criterion == "index" else None)
    rates = {"layer1.*.conv1": 0.5}
    data = {"images": images(), "labels": torch.arange(4)}
    small = norton.prune(net, rates, criterion, options=options, **data)
    assert small(images()).isfinite().all()
    assert {len(channels) for channels in kept(small).values()} == {8}
    again = norton.prune(net, rates, criterion, options=options, **data)
    assert kept(again) == kept(small)


@pytest.mark.parametrize("options, message", [
    ({"compress_rate": 1.0}, "the rate is 1.0; a rate is the fraction"),
    ({"compress_rate": float("nan")}, "the rate is nan"),
    ({"compress_rate": {"nix.*": 0.5}}, r"pattern 'nix\.\*' matches no layer that can be pruned; there are"),
    ({"compress_rate": {"fc": 0.5}}, "pattern 'fc' matches no layer"),
    ({"compress_rate": {"*": -0.5}}, r"pattern '\*' is -0\.5"),
    ({"compress_rate": {}}, "no patterns"),
    ({"compress_rate": None}, "no rates given"),
    ({"allocation": "nix"}, "unknown allocation 'nix'; choose one of rates, global"),
    ({"compress_rate": RATES, "allocation": "global"}, "global takes one number"),
    ({"compress_rate": 0.99, "allocation": "global"}, "with min_filters=8 only"),
    ({"min_filters": 0}, "min_filters is 0"),
    ({"round_to": 2.5}, r"round_to is 2\.5"),
    ({"rounding": "off"}, "unknown rounding 'off'; choose one of up, down, nearest"),
    ({"tied": "nix"}, "unknown tied 'nix'; choose one of average"),
    ({"normalisation": "nix"}, "unknown normalisation 'nix'; choose one of"),
    ({"dense_criterion": "pabs"}, "dense_criterion is 'pabs'; choose one that scores weights"),
    ({"criterion": 7}, "criterion is 7; give a name"),
    ({"criterion": {"product": ["l1", "l2"]}}, "unknown combination 'product'; choose one of weighted, intersection"),
    ({"criterion": {"intersection": ["l2"]}}, "at least two"),
    ({"criterion": {"intersection": ["l2", "nix"]}}, "unknown criterion 'nix'"),
    ({"criterion": {"weighted": {"l2": 0}}}, "the weight of l2 is 0"),
    ({"criterion": {"weighted": ["l2", "l1"]}}, "give criteria with weights"),
    ({"criterion": {"weighted": {"index": 1, "l1": 1}}}, "index names filters and cannot be combined"),
    ({"criterion": "index"}, "give filters="),
    ({"filters": {"conv1": "1"}}, "give criterion=index"),
    ({"criterion": "index", "filters": {"nix": "1"}}, "'nix' is no layer of this network; those that can are conv1"),
    ({"criterion": "index", "filters": {"fc": "1"}}, "'fc' cannot be pruned"),
    ({"criterion": "index", "filters": {"bn1": "1"}}, "'bn1' cannot be pruned"),
    ({"criterion": "index", "filters": {"conv1": "16"}}, "conv1: filter 16 is out of range"),
    ({"criterion": "index", "filters": {"layer1.0.conv2": "0-7", "layer1.1.conv2": "8-15"}}, "all its filters are"),
])  # fmt: skip
def test_bad_input(resnet, options, message):
    options = dict(options)
    rate, criterion = options.pop("compress_rate", 0.5), options.pop("criterion", "l2")
    with pytest.raises(norton.InputError, match=message):
        norton.prune(resnet, rate, criterion, options=norton.PruneOptions(**options))


def test_bn_scale_of_a_network_without_batchnorm():
    net = norton.build("resnet_56")
    wiring = net.wiring()
    wiring.passes = []
    net.wiring = lambda: wiring
    with pytest.raises(norton.InputError, match="this network has none"):
        norton.prune(net, 0.5, criterion="bn_scale")


def test_bn_scale_reads_the_norms_that_pass_each_axis():
    net = randomise_(norton.build("densenet_40"))
    small = norton.prune(net, 0.5, criterion="bn_scale", options=norton.PruneOptions(min_filters=1))
    offset = 24 + 3 * 12  # of layer 3's channels in what follows
    norms = [net.get_submodule(f"dense1.{i}.bn1").weight[offset : offset + 12] for i in range(4, 12)]
    norms.append(net.trans1.bn1.weight[offset : offset + 12])
    expected = torch.stack(norms).abs().mean(0).argsort(descending=True)[:6]
    assert kept(small)["dense1.3.conv1"] == sorted(expected.tolist())


def test_rates_in_every_form():
    assert read_rates("[0.5]*2") == [0.5, 0.5] and read_rates([0.1]) == [0.1]
    assert read_rates(0) == 0.0 and isinstance(read_rates(0), float)
    assert read_rates({"a": 0.5, "b": None}) == {"a": 0.5, "b": None}


@pytest.mark.parametrize("settings, words", [
    ({"criterion": "l2"}, "l2"),
    ({"criterion": "l2", "normalisation": "lamp", "allocation": "global"}, "l2 normalisation lamp global"),
    ({"criterion": "l2", "allocation": "global", "compensate": "outputs"}, "l2 global compensated"),
    ({"criterion": {"weighted": {"l2": 0.7, "fpgm": 0.3}}}, "0.7 l2 + 0.3 fpgm"),
    ({"criterion": {"intersection": ["l2", "fpgm"]}, "tied": "union"}, "l2 and fpgm tied union"),
])  # fmt: skip
def test_settings_in_words(settings, words):
    assert describe(settings) == words
