"""Surgery is exact: it equals masking, and removing dead channels changes nothing; on all five networks."""

import copy
import itertools
from functools import cache

import pytest
import torch
from helpers.masking import kill, mask_where_read, masks, outputs
from helpers.networks import randomised
from helpers.repository import ARCHITECTURES

import norton
from norton.graph import apply_prune_

SIZES = {"resnet_50": 64}
RATES = {
    "vgg_16_bn": ["[0.3]*7+[0.75]*6"],
    "resnet_56": [
        "[0.]+[0.4]*2+[0.5]*9+[0.6]*9+[0.7]*9",
        "[0.4]+[0.]+[0.8]+[0.5]*27",  # stem and stage 2 both narrower than stage 1
        "[0.5]+[0.1]+[0.95]+[0.]*27",
        "[0.2]+[0.6]+[0.1]+[0.3]*27",
        "[0.7]+[0.2]+[0.5]+[0.3]*27",
    ],
    "resnet_110": ["[0.]+[0.4]*2+[0.5]*18+[0.65]*36"],
    "densenet_40": ["[0.]+[0.2]*12+[0.3]+[0.4]*12+[0.1]+[0.2]*12"],
    "resnet_50": ["[0.2]+[0.1]*3+[0.4]*5+[0.75]*11"],
}
CASES = [(arch, rates, rank) for arch in ARCHITECTURES for rates in RATES[arch] for rank in (0, 2)]


@cache
def pruned(arch, rates, rank=0):
    return norton.prune(randomised(arch, rank), rates)


@pytest.mark.parametrize("arch, rates, rank", CASES)
def test_surgery_equals_masking(arch, rates, rank, images):
    net = randomised(arch, rank)
    small = copy.deepcopy(pruned(arch, rates, rank))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    batch = images(SIZES.get(arch, 32))
    expected = outputs(mask_where_read(net, masks(net, small.plan[-1]["keep"])), batch)
    torch.testing.assert_close(outputs(small, batch), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch, rates, rank", CASES)
def test_dead_channels_change_nothing(arch, rates, rank, images):
    net = randomised(arch, rank)
    keep = pruned(arch, rates, rank).plan[-1]["keep"]
    batch = images(SIZES.get(arch, 32))
    before = outputs(kill(net, masks(net, keep)), batch)
    apply_prune_(net, {"keep": keep})
    torch.testing.assert_close(outputs(net, batch), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ["resnet_56", "densenet_40"])
def test_pruning_twice_equals_masking(arch, images):
    first = copy.deepcopy(pruned(arch, RATES[arch][0]))
    rates = "[0.]+[0.2]*1+[0.3]+[0.25]*36"
    small = norton.prune(first, rates)
    expected = outputs(mask_where_read(first, masks(first, small.plan[-1]["keep"])), images())
    torch.testing.assert_close(outputs(small, images()), expected, rtol=1e-9, atol=1e-9)


def test_positions_matter_in_a_pruned_stream(images):
    """The oracle fails on the plausible mistake: survivors in their order, whatever the shortcut does."""
    net = randomised("resnet_56")
    keep = norton.prune(net, RATES["resnet_56"][0]).plan[-1]["keep"]
    naive = {layer: sorted(channels) for layer, channels in keep.items()}
    assert naive != keep
    expected = outputs(mask_where_read(norton.prune(net, "[0.]*30"), masks(net, naive)), images())
    apply_prune_(net, {"keep": naive})
    assert (outputs(net, images()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_either_order(arch, images):
    """Prune then decompose at full rank equals pruning alone."""
    alone = copy.deepcopy(pruned(arch, RATES[arch][0]))
    both = norton.decompose(alone, rank=9)
    assert [step["op"] for step in both.plan] == ["prune", "decompose"]
    batch = images(SIZES.get(arch, 32))
    torch.testing.assert_close(outputs(both, batch), outputs(alone, batch), rtol=1e-4, atol=1e-4)


def test_batchnorm_keeps_all_four_vectors():
    net = randomised("vgg_16_bn")
    small = norton.prune(net, "[0.5]*13")
    kept = small.plan[-1]["keep"]["features.conv3"]
    for vector in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(small.features.norm3, vector), getattr(net.features.norm3, vector)[kept])


def test_input_is_untouched_and_gradients_flow(images):
    net = randomised("resnet_56", 2)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    small = norton.prune(net, "[0.]+[0.4]*29").train()
    small(images()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("criterion", ["pabs", "vbd", "csa", "l2"])
def test_relabelling_filters_relabels_the_network(criterion, images):
    """Permuting the middle filters of every block must not change the pruned function."""
    net = randomised("resnet_56", 2)
    other = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(3)
    step = {"keep": {}}
    for stage, block in itertools.product((1, 2, 3), range(9)):
        width = 16 * 2 ** (stage - 1)
        step["keep"][f"layer{stage}.{block}.conv1"] = torch.randperm(width, generator=generator).tolist()
    apply_prune_(other, step)
    torch.testing.assert_close(outputs(other, images()), outputs(net, images()), rtol=1e-6, atol=1e-6)
    rates = "[0.]*3+[0.4]*27"
    a, b = (norton.prune(n.float(), rates, criterion=criterion) for n in (net, other))
    torch.testing.assert_close(outputs(a, images()), outputs(b, images()), rtol=1e-5, atol=1e-5)


def test_dense_layers_go_by_norm():
    net = randomised("resnet_50")
    small = norton.prune(net, "[0.]*4+[0.5]*16", criterion="pabs")
    norms = net.layer1[0].conv1.weight.flatten(1).norm(dim=1)
    assert small.plan[-1]["keep"]["layer1.0.conv1"] == sorted(norms.argsort(descending=True)[:32].tolist())


def test_zero_filters_go_first():
    net = randomised("vgg_16_bn", 2)
    filters = net.features.conv3.factors()
    filters.head.data[..., [5, 77, 100]] = 0
    for criterion in ("pabs", "vbd", "csa", "l2"):
        kept = norton.prune(net, "[0.]*2+[0.03]+[0.]*10", criterion=criterion).plan[-1]["keep"]["features.conv3"]
        assert not {5, 77, 100} & set(kept)


@pytest.mark.parametrize("arguments, message", [
    ({"compress_rate": "[0.1]*3"}, "needs 30"),
    ({"compress_rate": "[0.99]*30"}, "leaves none"),
    ({"compress_rate": "[0.1]*30", "criterion": "nix"}, "unknown criterion 'nix'"),
])  # fmt: skip
def test_bad_input(arguments, message):
    with pytest.raises(norton.InputError, match=message):
        norton.prune(norton.build("resnet_56"), **arguments)


def test_a_weight_that_is_not_finite_is_named():
    net = norton.build("resnet_56", 2)
    net.layer2[3].conv1.feature.vertical.weight.data[0] = float("nan")
    with pytest.raises(norton.InputError, match=r"layer2\.3\.conv1"):
        norton.prune(net, "[0.]+[0.2]*29")
