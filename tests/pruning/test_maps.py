"""Scores from calibration images: where maps are taken, against loops; batches, missing data, nothing left behind."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.networks import randomise_
from torch import nn

import norton
from norton.graph.inputs import Inputs
from norton.pruning import CRITERIA, maps
from norton.pruning.criteria.kinds import scores
from norton.pruning.maps import map_scores

DATA_DRIVEN = sorted(name for name in CRITERIA if CRITERIA[name].needs_images)
LAYERS = ["0", "3", "5", "8"]


def small():
    """A convolution with BatchNorm, one without, one that is decomposed, a linear layer; activations in place."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3, stride=2)]
    conv = norton.decomposition.cp.CPConv2d(5, 7, (3, 3), 2)
    layers += [nn.ReLU(inplace=True), conv, nn.BatchNorm2d(7), nn.Flatten(), nn.Linear(7 * 5 * 5, 8)]
    return randomise_(nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Linear(8, 4)))


def some_data(count=10):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, 16, 16, generator=generator), torch.arange(count) % 4


def literal(net, criterion):
    """Each image and map alone: the network stopped by hand after the BatchNorm, or the layer, and gone on with."""
    images, labels = some_data()
    found = {}
    for name, stop in (("0", 2), ("3", 4), ("5", 7), ("8", 9)):
        each = []
        for image, label in zip(images, labels, strict=True):
            source = net[:stop](image[None]).detach().clone().requires_grad_()
            rest = copy.deepcopy(net[stop:])
            F.cross_entropy(rest(source * 1), label[None]).backward()
            shaped = source.detach().reshape(1, source.shape[1], *(source.shape[2:] or (1, 1)))
            gradient = source.grad.reshape(shaped.shape)
            each.append(scores((shaped, gradient) if CRITERIA[criterion].needs_labels else shaped, criterion))
        found[name] = torch.stack(each).mean(0)
    return found


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_maps_are_taken_after_batchnorm_and_before_the_activation(criterion):
    net = small()
    found, expected = map_scores(net, LAYERS, criterion, *some_data()), literal(net, criterion)
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_taylor_is_the_squared_change_of_the_loss_when_a_map_fades():
    net, (images, labels) = small().double(), some_data(6)
    found = map_scores(net, ["0"], "taylor", images.double(), labels)["0"]
    for o in range(6):
        losses = []
        for gate in (1 - 1e-5, 1 + 1e-5):
            mask = torch.ones(6, 1, 1, dtype=torch.float64)
            mask[o] = gate
            losses.append(F.cross_entropy(net[2:](net[:2](images.double()) * mask), labels, reduction="none"))
        change = (losses[1] - losses[0]) / 2e-5
        assert found[o].item() == pytest.approx(change.square().mean().item(), rel=1e-5)


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_do_not_change_the_result(criterion, batch, monkeypatch):
    net = small()
    expected = map_scores(net, LAYERS, criterion, *some_data())
    monkeypatch.setattr(maps, "BATCH", batch)
    found = map_scores(net, LAYERS, criterion, *some_data())
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_the_network_is_left_as_it_was(criterion):
    net = small().train()
    net[0].weight.requires_grad_(False)
    images, labels = some_data()
    before, given = copy.deepcopy(net.state_dict()), images.clone()
    map_scores(net, LAYERS, criterion, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training and torch.equal(images, given) and not images.requires_grad
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())


def test_the_batchnorm_of_a_sum_is_no_layers_own():
    """In ResNet-56 each convolution has a BatchNorm of its own, in DenseNet-40 they follow concatenations."""
    net = norton.build("densenet_40")
    sources = maps.map_sources(net, ["dense1.0.conv1"], Inputs((torch.zeros(1, 3, 32, 32),)))
    assert sources == {"dense1.0.conv1": net.dense1[0].conv1}
    net = norton.build("resnet_56").eval()
    sources = maps.map_sources(net, ["layer1.0.conv2", "conv1"], Inputs((torch.zeros(1, 3, 32, 32),)))
    assert sources == {"layer1.0.conv2": net.layer1[0].bn2, "conv1": net.bn1}


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_missing_data(criterion):
    net, (images, labels) = norton.build("resnet_56"), some_data()
    prune = partial(norton.prune, net, 0.3, criterion, options=norton.PruneOptions(compensate=None))
    with pytest.raises(norton.InputError, match=rf"{criterion}.*pass images=.*calibration\.images"):
        prune()
    if CRITERIA[criterion].needs_labels:
        with pytest.raises(norton.InputError, match=r"labels= \(N,\)"):
            prune(images=images)
        for wrong, message in ((labels[:3], r"labels of shape \(3,\)"), (labels + 90, "label 93 is out of range")):
            with pytest.raises(norton.InputError, match=message):
                prune(images=images, labels=wrong)
    with pytest.raises(norton.InputError, match=r"images of shape \(3, 16, 16\)"):
        prune(images=images[0], labels=labels)
    with pytest.raises(norton.InputError, match="images have infinite or undefined values"):
        prune(images=images * torch.nan, labels=labels)
    net.bn1.bias.data[0] = torch.nan
    with pytest.raises(norton.InputError, match=r"holds NaN"):
        prune(images=images, labels=labels)


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_a_layer_that_is_not_passed_has_no_score(criterion):
    net = small()
    net.append(nn.ModuleDict({"idle": nn.Conv2d(3, 3, 1)}))
    net.forward = lambda x: nn.Sequential(*list(net)[:-1])(x)
    assert list(map_scores(net, ["11.idle", "3"], criterion, *some_data())) == ["3"]


def by_hand(net, layers, criterion, images, labels):
    """Layer → score, image after image, from its outputs (N, O, ...) or, of a linear layer, (N, ..., O)."""
    outputs, found = {}, {name: [] for name in layers}
    hooks = [
        net.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: outputs.update({name: y}) or y.clone())
        for name in layers
    ]
    for image, label in zip(images, labels, strict=True):
        loss = F.cross_entropy(net(image[None]), label[None], reduction="sum")  # over positions, if it has some
        gradients = torch.autograd.grad(loss, [outputs[name] for name in layers])
        for name, gradient in zip(layers, gradients, strict=True):
            pair = []
            for tensor in (outputs[name].detach(), gradient):
                if isinstance(net.get_submodule(name), nn.Linear):
                    order = [0, tensor.ndim - 1, *range(1, tensor.ndim - 1)]
                    tensor = tensor.permute(order)
                pair.append(tensor.reshape((*tensor.shape, 1, 1)[:4]))
            found[name].append(scores(tuple(pair) if CRITERIA[criterion].needs_labels else pair[0], criterion))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(each).mean(0) for name, each in found.items()}


class Tokens(nn.Module):
    """Linear layers over (N, H, W, O) with H = W = O, and over (N, tokens, O)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 12, 4, stride=4), nn.Linear(12, 16), nn.Linear(16, 24)
        self.head = nn.Linear(24, 4)

    def forward(self, x):
        x = self.a(self.stem(x).permute(0, 2, 3, 1)).relu().flatten(1, 2)
        return self.head(self.b(x).relu().mean(1))


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_linear_layers_have_their_filters_last(criterion):
    torch.manual_seed(0)
    net, images = Tokens().eval(), torch.randn(3, 3, 64, 64)  # maps of 16×16, by 16 filters
    labels = torch.arange(3)
    found = map_scores(net, ["stem", "a", "b"], criterion, images, labels)
    expected = by_hand(net, ["stem", "a", "b"], criterion, images, labels)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_masks_larger_than_maps_and_a_dict():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1, stride=2)).eval()
    larger = nn.Sequential(*net, nn.Upsample(size=(8, 8), mode="bilinear"))
    images, labels = torch.randn(3, 3, 8, 8), torch.randint(4, (3, 8, 8))
    expected = by_hand(larger, ["0"], "taylor", images, labels)["0"]
    net.register_forward_hook(lambda module, inputs, output: {"out": output})
    found = map_scores(net, ["0"], "taylor", images, labels)["0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_networks_that_give_maps():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    images, labels = torch.randn(3, 3, 8, 8), torch.randint(4, (3, 6, 6))
    labels[0, 0] = -100  # torch's own label for positions that do not count
    found, expected = (each(net, ["0"], "taylor", images, labels)["0"] for each in (map_scores, by_hand))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)
    for wrong, message in (
        (labels[:, 0, 0], r"gives \(3, 4, 6, 6\) for labels of shape \(3,\); .* each position, \(N, 6, 6\)"),
        (labels + 1, "label -99 is out of range"),
    ):
        with pytest.raises(norton.InputError, match=message):
            map_scores(net, ["0"], "taylor", images, wrong)
    net.register_forward_hook(lambda module, inputs, output: {"logits": output})
    with pytest.raises(norton.InputError, match=r"the network gives a dict, .* a small module"):
        map_scores(net, ["0"], "taylor", images, labels)


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
def test_an_output_that_has_no_place_for_the_filters_is_refused(criterion):
    net = small()
    net[3].register_forward_hook(lambda module, inputs, output: output.transpose(1, 3))
    net.forward = lambda x: net[3](net[:3](x)).mean((2, 3))
    with pytest.raises(norton.InputError, match=r"3: its output of shape \(\d+, 7, 7, 5\) is no map of its 5 filters"):
        map_scores(net, ["3"], criterion, *some_data())


@pytest.mark.parametrize("criterion", DATA_DRIVEN)
@pytest.mark.parametrize("arch, layers", [
    ("convnext_tiny", ["features.1.0.block.3", "features.5.4.block.3"]),  # linear layers, channels last
    ("googlenet", ["inception3a.branch1.conv", "inception4b.branch2.1.conv"]),
    ("mobilenet_v3_small", ["features.4.block.2.fc1", "classifier.0"]),
])  # fmt: skip
def test_networks_of_torchvision(criterion, arch, layers):
    torch.manual_seed(0)
    options = {"init_weights": True} if arch == "googlenet" else {}
    net = randomise_(getattr(torchvision.models, arch)(num_classes=10, **options))
    images, labels = torch.randn(2, 3, 64, 32), torch.tensor([1, 7])
    small = norton.prune(net, 0.3, criterion=criterion, images=images, labels=labels, example=(3, 64, 32))
    with torch.no_grad():
        assert small.eval()(images).shape == (2, 10)
    expected = by_hand(net, layers, criterion, images, labels) if arch != "googlenet" else {}
    if arch == "googlenet":  # each convolution has a BatchNorm, behind which its maps are taken
        norms = [name.replace("conv", "bn") for name in layers]
        expected = dict(zip(layers, by_hand(net, norms, criterion, images, labels).values(), strict=True))
        expected["aux1.conv.conv"] = net.aux1.conv.conv.weight.flatten(1).norm(dim=1)  # which only training passes
        expected["aux2.fc1"] = net.aux2.fc1.weight.norm(dim=1)
    for name, score in expected.items():
        kept = small.plan[-1]["keep"][name]
        gone = sorted(set(range(len(score))) - set(kept))
        assert len(kept) == int(len(score) * 0.7), name
        assert score[gone].max() <= score[kept].min() * (1 + 1e-5), name
