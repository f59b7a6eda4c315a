"""Surgery is exact: it equals masking, and removing dead channels changes nothing; on all five networks."""

import copy
import itertools

import pytest
import torch
from conftest import ARCHITECTURES, randomise_

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


def masks(net, keep):
    """Writer layer → 0/1 vector over the channels of its axis."""
    wiring, result = net.wiring(), {}
    for axis, writers in wiring.writers.items():
        mask = torch.zeros(wiring.width(axis))
        mask[keep.get(writers[0], range(wiring.width(axis)))] = 1
        result |= dict.fromkeys(writers, mask)
    return result


def mask_input(module, mask):
    module.register_forward_pre_hook(lambda m, x: (x[0] * mask.view(-1, *[1] * (x[0].dim() - 2)),))


def mask_where_read(net, m):
    """Zero the removed channels wherever they are read, written out by hand for each architecture."""
    if net.arch == "vgg_16_bn":
        names = [name for name in net.features._modules if name.startswith("conv")]
        for writer, reader in itertools.pairwise(names):
            mask_input(net.features.get_submodule(reader), m[f"features.{writer}"])
        mask_input(net.classifier.linear1, m[f"features.{names[-1]}"])
    elif net.arch in ("resnet_56", "resnet_110"):
        stream = m["conv1"]
        for stage in (1, 2, 3):
            for i, block in enumerate(getattr(net, f"layer{stage}")):
                mask_input(block, stream)  # read by the first convolution and by the shortcut
                mask_input(block.conv2, m[f"layer{stage}.{i}.conv1"])
                stream = m[f"layer{stage}.0.conv2"]
        mask_input(getattr(net, net.head), stream)
    elif net.arch == "densenet_40":
        x = m["conv1"]
        for block in (1, 2, 3):
            for i, layer in enumerate(getattr(net, f"dense{block}")):
                mask_input(layer.conv1, x)
                x = torch.cat([x, m[f"dense{block}.{i}.conv1"]])
            if block < 3:
                mask_input(getattr(net, f"trans{block}").conv1, x)
                x = m[f"trans{block}.conv1"]
        mask_input(net.fc, x)
    else:
        stream = m["conv1"]
        for stage in (1, 2, 3, 4):
            for i, block in enumerate(getattr(net, f"layer{stage}")):
                mask_input(block, stream)
                mask_input(block.conv2, m[f"layer{stage}.{i}.conv1"])
                mask_input(block.conv3, m[f"layer{stage}.{i}.conv2"])
                stream = m[f"layer{stage}.0.conv3"]
        mask_input(net.fc, stream)
    return net


def kill(net, m):
    """Zero BatchNorm weight and bias of the removed channels, so that their readers receive zeros."""
    norms = {}  # BatchNorm → mask, by hand as above
    if net.arch == "vgg_16_bn":
        norms = {name.replace("conv", "norm"): m[name] for name in m if name.startswith("features")}
    elif net.arch in ("resnet_56", "resnet_110"):
        # A shortcut carries a stream's channels into the next: dead there means dead before.
        stage2 = m["layer2.0.conv2"]
        stage1 = m["layer1.0.conv2"] * stage2[8:24]
        norms = {"bn1": m["conv1"] * stage1}
        for name in m:
            if name.startswith("layer"):
                first = name.startswith("layer1") and name.endswith("conv2")
                norms[name.replace("conv", "bn")] = stage1 if first else m[name]
    elif net.arch == "densenet_40":
        x = m["conv1"]
        for block in (1, 2, 3):
            for i in range(12):
                norms[f"dense{block}.{i}.bn1"] = x
                x = torch.cat([x, m[f"dense{block}.{i}.conv1"]])
            if block < 3:
                norms[f"trans{block}.bn1"] = x
                x = m[f"trans{block}.conv1"]
        norms["bn"] = x
    else:
        norms = {"bn1": m["conv1"]}
        for name in m:
            if name.startswith("layer"):
                norms[name.replace("conv", "bn").replace("downsample.0", "downsample.1")] = m[name]
    for name, mask in norms.items():
        for parameter in (net.get_submodule(name).weight, net.get_submodule(name).bias):
            parameter.data.mul_(mask)
    return net


@torch.no_grad()
def outputs(net, images):
    return net.double()(images.double())


@pytest.mark.parametrize("arch, rates, rank", CASES)
def test_surgery_equals_masking(arch, rates, rank, images):
    net = randomise_(norton.build(arch, rank))
    small = norton.prune(net, rates)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    batch = images(SIZES.get(arch, 32))
    expected = outputs(mask_where_read(net, masks(net, small.plan[-1]["keep"])), batch)
    torch.testing.assert_close(outputs(small, batch), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch, rates, rank", CASES)
def test_dead_channels_change_nothing(arch, rates, rank, images):
    net = randomise_(norton.build(arch, rank))
    keep = norton.prune(net, rates).plan[-1]["keep"]
    batch = images(SIZES.get(arch, 32))
    before = outputs(kill(net, masks(net, keep)), batch)
    apply_prune_(net, {"keep": keep})
    torch.testing.assert_close(outputs(net, batch), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("arch", ["resnet_56", "densenet_40"])
def test_pruning_twice_equals_masking(arch, images):
    first = norton.prune(randomise_(norton.build(arch)), RATES[arch][0])
    rates = "[0.]+[0.2]*1+[0.3]+[0.25]*36"
    small = norton.prune(first, rates)
    expected = outputs(mask_where_read(first, masks(first, small.plan[-1]["keep"])), images())
    torch.testing.assert_close(outputs(small, images()), expected, rtol=1e-9, atol=1e-9)


def test_positions_matter_in_a_pruned_stream(images):
    """The oracle fails on the plausible mistake: survivors in their order, whatever the shortcut does."""
    net = randomise_(norton.build("resnet_56"))
    keep = norton.prune(net, RATES["resnet_56"][0]).plan[-1]["keep"]
    naive = {layer: sorted(channels) for layer, channels in keep.items()}
    assert naive != keep
    expected = outputs(mask_where_read(norton.prune(net, "[0.]*30"), masks(net, naive)), images())
    apply_prune_(net, {"keep": naive})
    assert (outputs(net, images()) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_either_order(arch, images):
    """Prune then decompose at full rank equals pruning alone."""
    pruned = norton.prune(randomise_(norton.build(arch)), RATES[arch][0])
    both = norton.decompose(pruned, rank=9)
    assert [step["op"] for step in both.plan] == ["prune", "decompose"]
    batch = images(SIZES.get(arch, 32))
    torch.testing.assert_close(outputs(both, batch), outputs(pruned, batch), rtol=1e-4, atol=1e-4)


def test_batchnorm_keeps_all_four_vectors():
    net = randomise_(norton.build("vgg_16_bn"))
    small = norton.prune(net, "[0.5]*13")
    kept = small.plan[-1]["keep"]["features.conv3"]
    for vector in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(small.features.norm3, vector), getattr(net.features.norm3, vector)[kept])


def test_input_is_untouched_and_gradients_flow(images):
    net = randomise_(norton.build("resnet_56", 2))
    state = {key: value.clone() for key, value in net.state_dict().items()}
    small = norton.prune(net, "[0.]+[0.4]*29").train()
    small(images()).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("criterion", ["pabs", "vbd", "csa", "l2"])
def test_relabelling_filters_relabels_the_network(criterion, images):
    """Permuting the middle filters of every block must not change the pruned function."""
    net = randomise_(norton.build("resnet_56", 2))
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
    net = randomise_(norton.build("resnet_50"))
    small = norton.prune(net, "[0.]*4+[0.5]*16", criterion="pabs")
    norms = net.layer1[0].conv1.weight.flatten(1).norm(dim=1)
    assert small.plan[-1]["keep"]["layer1.0.conv1"] == sorted(norms.argsort(descending=True)[:32].tolist())


def test_zero_filters_go_first():
    net = randomise_(norton.build("vgg_16_bn", 2))
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
