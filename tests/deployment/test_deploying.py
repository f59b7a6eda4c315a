"""Deployed networks compute what the network computes, in every form."""

import copy
import pickle

import pytest
import torch
import torchvision
from helpers.deployment import close, norms
from helpers.networks import randomise_
from torch import nn

import detection
import norton
from norton import Deployment, InputError, deploy
from norton.common.errors import NortonWarning
from norton.deployment import norms as norms_room
from norton.deployment.assembling import assemble
from norton.deployment.exact_forms import DENSE, exact_forms
from norton.deployment.folding import fold
from norton.deployment.record import conditions
from norton.graph.layers import as_dense, is_decomposed


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("form", ["factored", "depthwise", "grouped", DENSE])
def test_every_form_in_a_network(small, form, channels_last):
    net = norton.decompose(small, 2, starts=1, iterations=2)
    x = torch.randn(4, 3, 8, 8)
    folded = fold(net, x)
    chosen = assemble(folded, dict.fromkeys(folded.decomposed, form), channels_last)
    close(chosen(x), net(x))
    close(chosen(x.contiguous(memory_format=torch.channels_last)), net(x))


@pytest.mark.parametrize("method", ["cp", "cp_layer", "tucker", "tucker_filter", "tt", "tt_filter", "svd"])
def test_methods(small, method):
    net = norton.decompose(small, 2, method=method)
    x = torch.randn(2, 3, 8, 8)
    deployed = deploy(net, x, repeats=1)
    close(deployed(x), net(x))
    close(deployed(x[:1]), net(x[:1]))  # another batch size
    assert list(deployed.deployment.forms) == [name for name, layer in net.named_modules() if is_decomposed(layer)]


NETWORKS = [("vgg_16_bn", 1), ("resnet_56", 2), ("resnet_110", 1), ("densenet_40", 1), ("resnet_50", 1)]


@pytest.mark.parametrize(("name", "rank"), NETWORKS)
def test_the_five_networks(name, rank):
    torch.manual_seed(0)
    net = randomise_(norton.build(name, rank)).eval()
    x = torch.randn(1, *((3, 64, 64) if name == "resnet_50" else net.input_size))
    folded = fold(net, x)
    layers = folded.decomposed
    mixed = {layer: list(exact_forms(layers[layer]))[place % 3] for place, layer in enumerate(layers)}
    for channels_last in (True, False):
        close(assemble(folded, mixed, channels_last)(x), net(x))
    if name != "densenet_40":  # which has its norms before its convolutions
        assert not norms(folded.net)


def test_pruned_network_of_torchvision():
    torch.manual_seed(0)
    net = norton.prune(randomise_(torchvision.models.mobilenet_v2(num_classes=4)).eval(), 0.3, criterion="l2")
    x = torch.randn(1, 3, 64, 64)
    deployed = deploy(net, x, repeats=1)
    close(deployed(x), net(x))
    assert not norms(deployed) and deployed.deployment.forms == {}


RATES = "[0.]+[0.1]*2+[0.4]*5+[0.75]*12"


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    options = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_test": 9, "box_score_thresh": 0.0}
    net = detection.build_detector(
        "fasterrcnn", norton.build("resnet_50", 1, RATES), 3, categories={1: "one"}, **options
    )
    randomise_(net.backbone)
    return net.eval()


def test_backbone_of_a_detector(detector):
    x = torch.randn(1, 3, 64, 64)
    wanted, folded = detector.backbone(x), fold(detector.backbone, x)
    found = assemble(folded, {}, True)(x)
    assert list(found) == list(wanted)
    for name in wanted:
        close(found[name], wanted[name])


@torch.inference_mode()
def test_detectors(detector):
    """In float64, where rounding changes no proposal's place."""
    detector = copy.deepcopy(detector).double()
    images = torch.rand(2, 3, 64, 80).double()
    entering = torch.zeros(2, 3, 64, 96).double()  # resized, and filled up to multiples of 32
    folded = fold(detector.backbone, entering)
    factored = dict.fromkeys(list(folded.decomposed)[1::2], "factored")
    choice = Deployment(factored, True, {}, {}, **conditions(folded, entering))
    deployed = detection.deploy_detector(detector, images, choice=choice)
    assert deployed.deployment == choice
    assert not norms(deployed.backbone) and norms(detector.backbone)
    assert (deployed.arch, deployed.recipe) == ("fasterrcnn", detector.recipe)
    for shapes in [(64, 80), (64, 80)], [(50, 40), (64, 64)]:
        batch = [torch.rand(3, *shape).double() for shape in shapes]
        for found, wanted in zip(deployed(batch), detector(batch), strict=True):
            assert list(found) == list(wanted) and len(found["boxes"]) == len(wanted["boxes"]) > 0
            assert torch.equal(found["labels"], wanted["labels"])
            for name in ("boxes", "scores"):
                close(found[name], wanted[name])
    again = detection.deploy_detector(detector.train(), images, choice=choice)
    assert detector.training and not again.training
    detector.eval()
    close(again(images)[0]["boxes"], detector(images)[0]["boxes"])


def test_a_single_layer(small):
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    close(deploy(conv.eval(), x, repeats=1)(x), conv(x))
    layer = norton.decompose(conv, 2).eval()
    close(deploy(layer, x, repeats=1)(x), as_dense(layer)(x))


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(2, 4, 8, 8), r"Small does not take an example of shape \(2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8).double(), "the example is torch.float64 on cpu, the network torch.float32 on cpu"),
        (torch.zeros(2, 3, 8, 8).long(), "example is torch.int64"),
        (torch.zeros(0, 3, 8, 8), "no numbers in it; give at least one image"),
        (torch.zeros(2, 3, 8, 8) * torch.nan, "the example has NaN in it"),
        ([1, 2], r"example is \[1, 2\]; give an input"),
    ],
)
def test_bad_examples(small, example, message):
    with pytest.raises(InputError, match=message):
        deploy(small, example)


def test_a_deployed_network_is_a_network_like_others(small, tmp_path):
    x = torch.randn(2, 3, 8, 8)
    deployed = deploy(small, x, repeats=1)
    wanted = small(x)
    laid = assemble(fold(small, x), {}, channels_last=True)
    close(deploy(laid, x, repeats=1)(x), wanted)
    for copied in (deploy(deployed, x, repeats=1), copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        close(copied(x), wanted)
    deployed.load_state_dict({name: 0 * value for name, value in deployed.state_dict().items()})
    assert not deployed(x).any()
    assert copy.deepcopy(small).double()(x.double()).dtype == deployed.double()(x.double()).dtype == torch.float64
    with pytest.raises(InputError, match="the network is a deployed one"):
        norton.save(deployed, tmp_path / "net.pt")
    assert not list(tmp_path.iterdir())


class Options(nn.Module):
    """Calls its layers by keyword, has arguments with defaults and weights with five axes."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.volume = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv3d(1, 1, 3)

    def forward(self, x, gain=2.0):
        y = self.norm(self.conv(input=x)) * gain
        return self.volume(y[:, None]).squeeze(1), y > 0, (0 * y).log()


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_weights_that_hooks_compute(norm):
    """torch cannot copy what they leave behind, and after loading it is of before."""
    net, other = (nn.Sequential(norm(nn.Conv2d(3, 3, 3))).eval() for _ in range(2))
    net.load_state_dict(other.state_dict())
    x = torch.randn(2, 3, 8, 8)
    close(deploy(net, x, repeats=1)(x), other(x))


def test_unusual_networks():
    torch.manual_seed(0)
    net, x = randomise_(Options()).eval(), torch.randn(2, 3, 8, 8)
    for own, wanted in zip(deploy(net, x, repeats=1)(x), net(x), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled(small):
    x = torch.randn(2, 3, 8, 8)
    deployed = deploy(norton.decompose(small, 2, starts=1, iterations=2), x, repeats=1)
    fast = deploy(norton.decompose(small, 2, starts=1, iterations=2), x, choice=deployed.deployment, compile=True)
    compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.inference_mode():
        close(fast(x), deployed(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == compilations > 0
    assert fast.deployment == deployed.deployment


def test_training_mode_is_said(small):
    small.train()
    x = torch.randn(2, 3, 8, 8)
    with pytest.warns(NortonWarning, match="training mode"):
        deployed = deploy(small, x, repeats=1)
    assert small.training and not deployed.training
    close(deployed(x), small.eval()(x))


def test_wrong_outputs_are_not_returned(small, monkeypatch):
    monkeypatch.setattr(norms_room, "affine_of", lambda norm: (norm.running_var, norm.running_mean))
    with pytest.raises(InputError, match="outputs differ by"):
        deploy(small, torch.randn(2, 3, 8, 8), repeats=1)
