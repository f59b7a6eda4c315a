"""Deployed networks against the networks they came from, and the choices they keep."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import randomise_
from torch import nn

import detection
import norton
from norton import Deployment, InputError, deploy
from norton.common.errors import NortonWarning
from norton.deployment import comparing, deploying, folding, search
from norton.deployment.assembling import assemble, decomposed_layers
from norton.deployment.comparing import deploy_alike
from norton.deployment.exact_forms import DENSE, FUSED, SumOfTerms, exact_forms
from norton.deployment.folding import fold
from norton.deployment.onednn import PackedConv2d
from norton.deployment.record import conditions
from norton.deployment.search import FormSearch, SearchBudget
from norton.graph.layers import as_dense, is_decomposed
from norton.measure.latency import Latency, latencies


class Small(nn.Module):
    """Convolutions with and without BatchNorm, one that is read twice, a pre-activation, a shared layer."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.norm3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm4 = nn.BatchNorm2d(8, affine=False)
        self.drop = nn.Dropout(0.5)
        self.hidden, self.norm5, self.last = nn.Linear(128, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        y = self.second(x)
        x = F.relu(self.norm2(y)) + y  # what follows `second` is not BatchNorm alone
        x = F.relu(self.norm3(self.shared(x)))
        x = F.relu(self.norm4(self.shared(x)))
        x = F.max_pool2d(x, 2)
        x = x.view(x.shape[0], -1)
        return self.last(self.drop(F.relu(self.norm5(self.hidden(x)))))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return randomise_(Small()).eval()


def close(found, wanted):
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, error


def norms(net):
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]


def test_folding_takes_only_norms_that_alone_follow_a_layer(small):
    x, before = torch.randn(4, 3, 8, 8), {name: value.clone() for name, value in small.state_dict().items()}
    folded = fold(small)
    assert norms(folded) == ["norm2", "norm3", "norm4"]
    assert not any(isinstance(layer, nn.Dropout) for layer in folded.modules())
    close(folded(x), small(x))
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("form", ["factored", "depthwise", "grouped", DENSE])
def test_every_form_in_a_network(small, form, channels_last):
    net = norton.decompose(small, 2, starts=1, iterations=2)
    folded = fold(net)
    x = torch.randn(4, 3, 8, 8)
    chosen = assemble(folded, dict.fromkeys(decomposed_layers(folded), form), channels_last)
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
    folded = fold(net)
    layers = decomposed_layers(folded)
    mixed = {layer: list(exact_forms(layers[layer]))[place % 3] for place, layer in enumerate(layers)}
    for channels_last in (True, False):
        close(assemble(folded, mixed, channels_last)(x), net(x))
    if name != "densenet_40":  # which has its norms before its convolutions
        assert not norms(folded)


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
    wanted, folded = detector.backbone(x), fold(detector.backbone)
    found = assemble(folded, {}, True)(x)
    assert list(found) == list(wanted)
    for name in wanted:
        close(found[name], wanted[name])


@torch.inference_mode()
def test_detectors(detector):
    """In float64, where rounding changes no proposal's place."""
    detector = copy.deepcopy(detector).double()
    images = torch.rand(2, 3, 64, 80).double()
    folded = fold(detector.backbone)
    entering = torch.zeros(2, 3, 64, 96).double()  # resized, and filled up to multiples of 32
    factored = dict.fromkeys(list(decomposed_layers(folded))[1::2], "factored")
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


def test_frozen_norms_are_folded(small):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), torchvision.ops.FrozenBatchNorm2d(4), nn.ReLU())
    for name in ("weight", "bias", "running_mean"):
        getattr(net[1], name).normal_()
    x = torch.randn(2, 3, 6, 6)
    folded = fold(net)
    assert [type(layer) for layer in folded.children()] == [nn.Conv2d, nn.ReLU]
    close(folded(x), net(x))


def test_a_single_layer(small):
    conv = nn.Conv2d(3, 4, 3)
    x = torch.randn(2, 3, 6, 6)
    close(deploy(conv.eval(), x, repeats=1)(x), conv(x))
    layer = norton.decompose(conv, 2).eval()
    close(deploy(layer, x, repeats=1)(x), as_dense(layer)(x))


@pytest.fixture
def times(monkeypatch):
    """Deploys where layers and networks take the milliseconds that it is told."""

    def tell(layers, network):
        alone = {(form, channels_last): ms for form, ms in layers.items() for channels_last in (True, False)}
        monkeypatch.setattr(FormSearch, "time_forms", lambda *_: alone)
        monkeypatch.setattr(
            search,
            "latencies",
            lambda nets, *_, repeats: {name: Latency(0, DENSE, (network(net), 0)) for name, net in nets.items()},
        )

    return tell


def convolutions(net):
    return sum(isinstance(layer, nn.Conv2d) for layer in net.modules())


def test_the_whole_network_decides(small, times):
    """Whatever layers say alone, a network that is slower than the dense form is not taken."""
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    alone = {"depthwise": 1.0, "grouped": 1.5, DENSE: 5.0}
    times(alone, convolutions)
    slow = deploy(net, x, search=SearchBudget()).deployment
    assert set(slow.forms.values()) == {DENSE} and slow.networks["chosen"] == slow.networks["dense"] == 3
    assert "no form of the decomposed layers beats their dense one here" in slow.sentence()
    times(alone, lambda deployed: 10 - convolutions(deployed))
    fast = deploy(net, x, search=SearchBudget()).deployment
    assert set(fast.forms.values()) == {"depthwise"} and fast.networks["chosen"] == 4 < fast.networks["dense"]


@pytest.mark.parametrize(("milliseconds", "form"), [(1.2, "grouped"), (1.5, "depthwise")])
def test_neighbours_are_tried(small, times, milliseconds, form):
    """A form nearly as fast alone is taken where the whole network is faster with it; one far slower is not tried."""
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)

    def network(deployed):
        costs = {SumOfTerms: 5, nn.Sequential: 3, nn.Conv2d: 9, PackedConv2d: 9}
        first = {SumOfTerms: 5, nn.Sequential: 10}.get(type(deployed.first), 9)  # so that one form for all loses
        return first + costs[type(deployed.second)] + costs[type(deployed.shared)]

    times({"depthwise": 1.0, "grouped": milliseconds, DENSE: 5.0}, network)
    assert deploy(net, x, search=SearchBudget()).deployment.forms == {
        "first": "depthwise",
        "second": form,
        "shared": form,
    }


def test_one_form_for_all_is_tried(small, times):
    """Layers that were disturbed while they were timed do not hide what is fastest in the whole network."""
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    times({"depthwise": 9.0, "grouped": 5.0, DENSE: 1.0}, lambda deployed: 10 - convolutions(deployed))
    chosen = deploy(net, x, search=SearchBudget()).deployment
    assert set(chosen.forms.values()) == {"depthwise"} and chosen.networks["chosen"] == 4


def test_a_kernel_that_fails_on_this_gpu_is_left_out(small, monkeypatch):
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such instruction\nand a long trace")

    made = search.exact_forms
    with_broken = lambda name: lambda layer: {name: Broken()} | made(layer)  # noqa: E731
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(search, "exact_forms", with_broken(FUSED))
    with pytest.warns(NortonWarning, match="fused is left out, it fails here: no such instruction$"):
        close(deploy(net, x, repeats=1)(x), net(x))
    monkeypatch.setattr(search, "exact_forms", with_broken("merged"))
    with pytest.raises(RuntimeError):  # which would be a mistake of ours
        deploy(net, x, repeats=1)


def test_a_choice_is_kept_and_applied_again(small, tmp_path, monkeypatch):
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    made = deploy(net, x, repeats=1)
    choice = made.deployment
    assert Deployment.load(choice.save(tmp_path / "choice.json")) == choice
    monkeypatch.setattr(deploying, "FormSearch", None)  # nothing is measured
    again = deploy(net, x, choice=tmp_path / "choice.json")
    assert torch.equal(again(x), made(x)) and again.deployment == choice
    forced = replace(choice, forms=dict.fromkeys(choice.forms, "factored"))
    assert len(deploy(net, x, choice=forced).first) == 3
    assert {row["layer"] for row in choice.rows()} == {"first", "second", "shared"}


def test_choices_of_something_else_are_refused(small, tmp_path):
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    choice = deploy(net, x, repeats=1).deployment
    for name, value in (("machine", "another, 64 threads"), ("torch", "1.0")):
        with pytest.raises(InputError, match=f"of another {name}: {value}, here .*; measure anew"):
            deploy(net, x, choice=replace(choice, **{name: value}))
    with pytest.raises(InputError, match="of another network"):
        deploy(norton.decompose(small, 3, starts=1, iterations=2), x, choice=choice)
    with pytest.raises(InputError, match="of another example: 2×3×8×8 float32, here 4×3×8×8 float32"):
        deploy(net, torch.randn(4, 3, 8, 8), choice=choice)
    (tmp_path / "bad.json").write_text(json.dumps({"forms": {}}))
    for file in ("bad.json", "none.json"):
        with pytest.raises(InputError, match="is no saved deployment"):
            deploy(net, x, choice=tmp_path / file)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(2, 4, 8, 8), r"Small does not take an example of shape \(2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8).double(), "the example is torch.float64 on cpu, the network torch.float32 on cpu"),
        (torch.zeros(2, 3, 8, 8).long(), "example is torch.int64"),
        (torch.zeros(0, 3, 8, 8), "give a batch of images"),
        ([1, 2], "example is list"),
    ],
)
def test_bad_examples(small, example, message):
    with pytest.raises(InputError, match=message):
        deploy(small, example)


class Tied(nn.Module):
    """Two convolutions with one weight, each before its own BatchNorm."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1, bias=False) for _ in range(2))
        self.two.weight = self.one.weight
        self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm2(self.two(self.norm1(self.one(x))))


class Reads(nn.Module):
    """A convolution whose weight is read outside of it too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(self.conv(x)) + nn.functional.conv2d(x, self.conv.weight, padding=1)


def normed(conv):
    return nn.Sequential(conv, nn.BatchNorm2d(3))


def hooked():
    conv = nn.Conv2d(3, 3, 3)
    conv.register_forward_hook(lambda layer, inputs, output: output + 1)
    return conv


@pytest.mark.parametrize(
    "make",
    [
        Tied,
        Reads,
        lambda: normed(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
        lambda: normed(hooked()),
        lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 3), nn.BatchNorm1d(3)),  # (N, 3, 3): the norm is of axis 1
    ],
    ids=["tied", "read", "parametrised", "hooked", "linear"],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_that_are_bound_are_never_scaled_wrongly(make, zeros):
    """Either the outputs are right on any images, or the network is refused; an example of zeros shows no errors."""
    torch.manual_seed(0)
    net, x = randomise_(make()).eval(), torch.randn(2, 3, 8, 8)
    try:
        deployed = deploy(net, torch.zeros_like(x) if zeros else x, repeats=1)
    except InputError as error:
        assert isinstance(net, nn.Sequential) and "differ" in str(error)
    else:
        close(deployed(x), net(x))


def test_a_deployed_network_is_a_network_like_others(small, tmp_path):
    x = torch.randn(2, 3, 8, 8)
    deployed = deploy(small, x, repeats=1)
    wanted = small(x)
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
def test_networks_that_cannot_be_copied_are_refused():
    net = nn.Sequential(torch.nn.utils.weight_norm(nn.Conv2d(3, 3, 3)))
    with pytest.raises(InputError, match="weight is computed from other tensors"):
        deploy(net, torch.randn(2, 3, 8, 8))


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
    monkeypatch.setattr(folding, "affine_of", lambda norm: (norm.running_var, norm.running_mean))
    with pytest.raises(InputError, match="outputs differ by"):
        deploy(small, torch.randn(2, 3, 8, 8), repeats=1)


# Networks that are timed against each other


@pytest.fixture
def pair(small, monkeypatch):
    monkeypatch.setattr(comparing, "shared_choices", {})
    return {"dense": small, "small": norton.decompose(small, 2, starts=1, iterations=2)}


def test_networks_are_deployed_alike_and_say_how(pair):
    x = torch.randn(2, 3, 8, 8)
    ready = deploy_alike({name: net.train() for name, net in pair.items()}, x)
    assert pair["small"].training
    times = latencies(ready, x, repeats=2)
    for name, net in ready.items():
        close(net(x), pair[name].eval()(x))
        assert norms(net) == ["norm2", "norm3", "norm4"]
        assert times[name].form == net.deployment.summary()
    assert times["dense"].form in ("dense, channels-last", "dense, contiguous")
    assert deploy_alike(pair, x, "eager") == pair
    assert latencies(pair, x, repeats=1)["small"].form in ("factored", "grouped", "composed")
    with pytest.raises(InputError, match="latency is 'fast'; choose deployed or eager"):
        deploy_alike(pair, x, "fast")


def test_networks_of_equal_shapes_share_a_choice(pair, monkeypatch):
    x, searched = torch.randn(2, 3, 8, 8), []
    monkeypatch.setattr(deploying, "FormSearch", lambda *given: searched.append(1) or FormSearch(*given))
    first = deploy_alike(pair, x)
    assert len(searched) == 2
    other = randomise_(Small(), seed=1)
    more = {"dense": other, "small": norton.decompose(other, 2, starts=1, iterations=2)}
    for name, net in deploy_alike(more, x).items():
        assert net.deployment == first[name].deployment
        close(net(x), more[name](x))
    assert len(searched) == 2
    deploy_alike(pair, x[:1])
    assert len(searched) == 4


class Untraceable(nn.Module):
    def forward(self, x):
        return x + 1 if x.sum() > 0 else x


def test_all_networks_stay_as_they_are_where_one_cannot_be_deployed(pair):
    pair["other"] = Untraceable()
    with pytest.warns(NortonWarning) as remarks:
        assert deploy_alike(pair, torch.randn(2, 3, 8, 8)) == pair
    (remark,) = remarks
    assert "timed as they are, not deployed; other: " in str(remark.message)


@pytest.mark.parametrize(
    ("forms", "channels_last", "words"),
    [
        ([], True, "dense, channels-last"),
        (["depthwise"] * 3, True, "depthwise, channels-last"),
        (["dense", "grouped", "grouped"], False, "2 grouped + 1 dense, contiguous"),
    ],
)
def test_a_choice_in_few_words(forms, channels_last, words):
    layers = {str(number): form for number, form in enumerate(forms)}
    assert Deployment(layers, channels_last, {}, {}, *[""] * 5).summary() == words
