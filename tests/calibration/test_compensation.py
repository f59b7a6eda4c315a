"""Compensation: what is left of the layers against literal least squares, and what it must and must not change."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.networks import randomise_
from torch import nn

import norton
from norton.calibration import reestimate_batchnorm_
from norton.decomposition import DECOMPOSITIONS
from norton.models.resnet_cifar import CifarResNet

EXACT = norton.Calibration(ridge=1e-10)


def pictures(count=24, size=12):
    # Smooth, so that channels of random filters depend on each other as those of a trained network do.
    noise = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return F.avg_pool2d(noise, 3, 1, 1)


def plain():
    """Convolutions with and without bias, with stride and dilation; a linear layer that reads flattened maps."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 7, 3, stride=2, padding=1), nn.ReLU()]
    layers += [nn.Conv2d(7, 6, (3, 2), dilation=(1, 2), bias=False), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 3 * 3, 5)]
    return randomise_(nn.Sequential(*layers)).double()


def pruned(net, filters, images=None, how=None, **more):
    options = norton.PruneOptions(filters=filters, compensate=None if images is None else "outputs")
    more = {"options": options, "example": (3, 12, 12)} | more
    return norton.prune(net, None, "index", images=images, calibration=how, **more)


FILTERS = {"0": "1, 4, 5", "2": "0, 6", "4": "2"}


def rows_of(layer, x):
    """(rows, D) of what a layer multiplies its filters with, (rows, O) of what it gives without its bias."""
    y = layer(x) - (0 if layer.bias is None else layer.bias.view(-1, *[1] * (x.ndim - 2)))
    if isinstance(layer, nn.Linear):
        return x, y
    unfolded = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return unfolded.mT.flatten(0, 1), y.flatten(2).mT.flatten(0, 1)


def least_squares(weight, x, y, ridge, free):
    """The solution of numpy's kind: rows of the data, then rows that pull towards `weight`."""
    if free:
        x, y = x - x.mean(0), y - y.mean(0)
    size = x.shape[1]
    level = ridge * max(1, size / len(x)) * x.square().mean() * len(x)
    pull = level.sqrt() * torch.eye(size, dtype=x.dtype)
    both = torch.linalg.lstsq(torch.cat([x, pull]), torch.cat([y, pull @ weight.flatten(1).T]))
    return both.solution.T.view(weight.shape)


@pytest.mark.parametrize("sequential", [True, False])
@torch.no_grad()
def test_literal_least_squares(sequential):
    net, images, ridge = plain(), pictures(), 0.01
    how = norton.Calibration(sequential=sequential, ridge=ridge, batch_size=7)
    found, small = pruned(net, FILTERS, images, how), pruned(net, FILTERS)
    survivors = {"0": [0, 2, 3, 6, 7], "2": [1, 2, 3, 4, 5], "4": [0, 1, 3, 4, 5], "7": list(range(5))}
    before = now = images
    for i, layer in enumerate(net):
        if str(i) in FILTERS or i == 7:
            new = small[i]
            if i > 0:
                y = rows_of(layer, before)[1][:, survivors[str(i)]]
                if not sequential:  # what the layer still reads of what the network gave before
                    channels = survivors[str(i - 2 if i < 7 else 4)]
                    now = before[:, channels] if i < 7 else before.view(-1, 6, 9)[:, channels].flatten(1)
                x = rows_of(new, now)[0]
                new.weight.copy_(least_squares(new.weight, x, y, ridge, free=layer.bias is not None))
                if layer.bias is not None:
                    new.bias += y.mean(0) - x.mean(0) @ new.weight.flatten(1).T
            for key, value in new.state_dict().items():
                torch.testing.assert_close(found[i].state_dict()[key], value, rtol=1e-6, atol=1e-8)
        before, now = layer(before.clone()), small[i](now.clone())
    plain_cut = pruned(net, FILTERS)
    assert any((found[i].weight - plain_cut[i].weight).norm() > 0.1 * found[i].weight.norm() for i in (2, 4, 7))


def difference(net, small, images):
    with torch.no_grad():
        whole = net(images)
        return ((small(images) - whole).square().sum() / whole.square().sum()).item()


@pytest.mark.parametrize("sequential", [True, False])
@torch.no_grad()
def test_a_duplicate_filter_goes_without_loss(sequential):
    net = plain()
    for i, (gone, twin) in {0: (4, 2), 2: (0, 6)}.items():
        net[i].weight[gone], net[i].bias[gone] = net[i].weight[twin], net[i].bias[twin]
    filters = {"0": 4, "2": 0}
    how = norton.Calibration(ridge=1e-10, sequential=sequential)
    small = pruned(net, filters, pictures(), how)
    others = torch.randn(5, 3, 12, 12, dtype=torch.float64)  # also of images that it was not fitted on
    assert difference(net, small, others) < 1e-8
    assert difference(net, pruned(net, filters), others) > 1e-2
    expected = net[2].weight.clone()[1:]
    expected[:, 2] += expected[:, 4]
    torch.testing.assert_close(small[2].weight, expected[:, [0, 1, 2, 3, 5, 6, 7]], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_constant_channel_goes_into_the_bias_of_its_reader():
    net = nn.Sequential(*plain()[:2], nn.Conv2d(8, 7, 3, padding=0), nn.Flatten(), nn.Linear(7 * 64, 4)).double()
    randomise_(net)
    net[0].weight[3], net[0].bias[3] = 0, 1.5
    images = pictures()
    small = pruned(net, {"0": 3}, images, EXACT)
    assert difference(net, pruned(net, {"0": 3}), images) > 1e-3
    assert difference(net, small, images) < 1e-10


@torch.no_grad()
def test_dead_channels_change_nothing():
    net = plain()
    for i, o in ((0, 1), (0, 5), (2, 3), (4, 0)):
        net[i].weight[o] = 0
        if net[i].bias is not None:
            net[i].bias[o] = -0.5 if i == 0 else 0  # an activation follows, which makes it zero
    filters = {"0": "1, 5", "2": 3, "4": 0}
    small, cut = pruned(net, filters, pictures()), pruned(net, filters)
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(small.state_dict()[key], value, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_channels_that_batchnorm_makes_dead_change_nothing():
    net = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 7, 3), nn.BatchNorm2d(7)]
    net = randomise_(nn.Sequential(*net, nn.ReLU(), nn.Flatten(), nn.Linear(7 * 64, 4))).double()
    for i, o in ((1, 2), (1, 7), (4, 0)):
        net[i].weight[o] = net[i].bias[o] = 0
    filters = {"0": "2, 7", "3": 0}
    small, cut = pruned(net, filters, pictures()), pruned(net, filters)
    assert difference(net, cut, pictures()) < 1e-20
    for key, value in cut.state_dict().items():
        torch.testing.assert_close(small.state_dict()[key], value, rtol=1e-6, atol=1e-8)


def test_what_comes_before_the_first_cut_stays():
    net = plain()
    small = pruned(net, {"2": "0, 6"}, pictures())
    assert all(torch.equal(a, b) for a, b in zip(net[0].parameters(), small[0].parameters(), strict=True))
    assert torch.equal(small[2].weight, net[2].weight[1:6]), "it reads what it read"
    assert not torch.equal(small[4].weight, pruned(net, {"2": "0, 6"})[4].weight)


@torch.no_grad()
def output_error(net, small, name, images):
    """Of a layer that reads what the cut leaves of the layer before."""
    outputs = {}
    for which in (net, small):
        handle = which.get_submodule(name).register_forward_hook(lambda *a, which=which: outputs.update({which: a[2]}))
        which(images)
        handle.remove()
    return (outputs[net] - outputs[small]).square().sum((0, *range(2, outputs[net].ndim)))


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("method", sorted(DECOMPOSITIONS))
def test_decomposed_readers_come_nearer(method, sequential):
    net, images = plain(), pictures()
    net = norton.decompose(net, 2, method=method, skip=None if method == "svd" else ["0"])
    name = next(name for name, layer in net.named_modules() if hasattr(layer, "composed_weight"))
    filters = {"0": "1, 4, 5"} if name == "2" else {"4": "2, 3"}
    cut = pruned(net, filters)
    small = pruned(net, filters, images, norton.Calibration(sequential=sequential))
    assert type(small.get_submodule(name)) is type(cut.get_submodule(name))
    assert {k: v.shape for k, v in small.state_dict().items()} == {k: v.shape for k, v in cut.state_dict().items()}
    before, after = (output_error(net, other, name, images) for other in (cut, small))
    assert after.sum() < 0.8 * before.sum()
    if method == "cp":
        assert (after <= before * 1.001).all(), "of each filter"


class TinyResNet(CifarResNet):
    """Shortcuts that move channels by position."""

    depth, head = 1, "fc"


class TinyDenseNet(nn.Module):
    """Layers that read concatenations after a BatchNorm, which no BatchNorm follows."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 6 * i) for i in range(4))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 6 * i, 6, 3, padding=1, bias=False) for i in range(3))
        self.fc = nn.Linear(26, 10)

    def forward(self, x):
        x = self.stem(x)
        for i in range(3):
            x = torch.cat([x, self.convs[i](self.norms[i](x).relu())], 1)
        return self.fc(self.norms[3](x).relu().mean((2, 3)))


def mobilenet():
    return torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=10)


@pytest.mark.parametrize("make, rank", [
    (TinyResNet, None), (TinyResNet, 2), (TinyDenseNet, None), (TinyDenseNet, 2), (mobilenet, None),
])  # fmt: skip
def test_networks_come_nearer(make, rank):
    torch.manual_seed(0)
    images = pictures(48, 16).float()
    net = randomise_(make())
    if rank:
        net = norton.decompose(net, rank)
    net = reestimate_batchnorm_(net, images).eval()
    net.input_size = (3, 16, 16)
    names = {name for name, layer in net.named_modules() if getattr(layer, "groups", 1) > 1 and "feature." not in name}
    options = norton.PruneOptions(min_filters=1)
    before = copy.deepcopy(net.state_dict())
    cut = norton.prune(net, 0.3, "l2", options=options)
    small = norton.prune(net, 0.3, "l2", images=images, options=replace(options, compensate="outputs"))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "net is untouched"
    assert small.plan == cut.plan and not small.training
    for name in names:
        assert torch.equal(small.get_submodule(name).weight, cut.get_submodule(name).weight), "grouped: stays"
    error, without = difference(net, small, images), difference(net, cut, images)
    corrected = difference(net, reestimate_batchnorm_(cut, images), images)
    assert error < 0.6 * min(without, corrected), (error, without, corrected)


def test_saved_and_loaded(tmp_path):
    net = randomise_(norton.build("resnet_56"))
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    rates = "[0.4]+[0.]+[0.2]+[0.5]*27"
    small = norton.prune(net, rates, criterion="l2", options=norton.PruneOptions(compensate="outputs"), images=images)
    assert small.plan == norton.prune(net, rates, criterion="l2").plan
    norton.save(small, tmp_path / "small.pt")
    again = norton.load(tmp_path / "small.pt").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(images), small(images))


class Shared(nn.Module):
    """A layer that is called twice, two that share a weight, one that is called only in training."""

    def __init__(self):
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.again = nn.Conv2d(6, 6, 3, padding=1)
        self.a, self.b = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.b.weight = self.a.weight
        self.wide, self.out, self.aux = nn.Conv2d(6, 9, 3), nn.Linear(9, 4), nn.Linear(9, 4)

    def forward(self, x):
        x = self.first(self.stem(x).relu()).relu()
        x = self.b(self.a(self.again(self.again(x).relu())).relu())
        x = self.wide(x).relu().mean((2, 3))
        return (self.out(x), self.aux(x)) if self.training else self.out(x)


def test_layers_that_cannot_be_fitted_alone_stay():
    net = randomise_(Shared()).double()
    options, example = norton.PruneOptions(min_filters=1), (3, 12, 12)
    rates = {"stem": 0.4, "wide": 0.4}
    with pytest.warns(UserWarning, match=r"no calibration image reaches 1 layer \(aux\)"):
        compensated = replace(options, compensate="outputs")
        small = norton.prune(net, rates, "l2", images=pictures(), options=compensated, example=example)
    cut = norton.prune(net, rates, "l2", options=options, example=example)
    same = {name for name, value in cut.state_dict().items() if torch.equal(value, small.state_dict()[name])}
    stay = {f"{layer}.{kind}" for layer in ("stem", "again", "a", "b", "aux") for kind in ("weight", "bias")}
    assert same == stay and small.a.weight is small.b.weight
    assert difference(net, small, pictures()) < 0.5 * difference(net, cut, pictures())


def test_no_images_no_compensation():
    net = plain()
    with pytest.warns(UserWarning, match="compensate=outputs without calibration images: not compensated"):
        small = norton.prune(
            net,
            0.3,
            criterion="l2",
            options=norton.PruneOptions(compensate="outputs", min_filters=1),
            example=(3, 12, 12),
        )
    cut = norton.prune(net, 0.3, criterion="l2", example=(3, 12, 12), options=norton.PruneOptions(min_filters=1))
    pairs = zip(small.parameters(), cut.parameters(), strict=True)
    assert all(itertools.starmap(torch.equal, pairs))


def test_nothing_is_cut_nothing_changes():
    net = plain()
    small = norton.prune(
        net,
        0.0,
        criterion="l2",
        options=norton.PruneOptions(compensate="outputs"),
        images=pictures(),
        example=(3, 12, 12),
    )
    assert all(itertools.starmap(torch.equal, zip(small.parameters(), net.parameters(), strict=True)))


def test_criterion_and_compensation_share_the_images():
    net, images = plain(), pictures()
    small, cut = (
        norton.prune(net, 0.3, "hrank", options=options, images=images, example=(3, 12, 12))
        for options in (norton.PruneOptions(compensate=how, min_filters=1) for how in ("outputs", None))
    )
    assert small.plan == cut.plan and difference(net, small, images) < difference(net, cut, images)


def test_the_form_of_computation_stays():
    net = norton.set_form_(norton.decompose(plain(), 1), "composed")
    small = pruned(net, {"0": "1, 4, 5"}, pictures())
    assert [layer.form for layer in small.modules() if hasattr(layer, "form")] == ["composed"] * 3


@pytest.mark.parametrize("options, message", [
    ({"compensate": "weights"}, "compensate is 'weights'; choose auto or outputs, or None"),
    ({"compensate": True}, "compensate is True"),
    ({"compensate": "outputs", "images": pictures()[0]}, r"shape \(3, 12, 12\); expected \(N, C, H, W\)"),
    ({"compensate": "outputs", "images": pictures()[:0]}, "at least one"),
    ({"compensate": "outputs", "images": torch.full((2, 3, 32, 32), torch.nan)}, "infinite or undefined"),
    ({"compensate": "outputs", "images": pictures()}, "3×12×12; the network takes 3×32×32"),
])  # fmt: skip
def test_bad_input(options, message):
    net = norton.build("resnet_56")
    with pytest.raises(norton.InputError, match=message):
        how = norton.PruneOptions(compensate=options["compensate"])
        norton.prune(net, 0.3, criterion="l2", options=how, images=options.get("images"))
