"""Which form is chosen, kept and applied again."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.deployment import close
from rich.progress import Progress
from torch import nn

import norton
from norton import Deployment, InputError, deploy
from norton.common.errors import NortonWarning
from norton.deployment import deploying, search
from norton.deployment.exact_forms import DENSE, FUSED, SumOfTerms
from norton.deployment.folding import fold
from norton.deployment.onednn import PackedConv2d
from norton.deployment.search import FormSearch, SearchBudget
from norton.measure.latency import Latency

pytestmark = pytest.mark.quick


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


@pytest.mark.parametrize("budget", [SearchBudget(trials=0), SearchBudget(patience=0)])
def test_a_search_ends_with_its_budget(small, times, budget):
    """Without trials, or time for them, what is best alone is compared with one form for all, and no more."""
    net, x = norton.decompose(small, 2, starts=1, iterations=2), torch.randn(2, 3, 8, 8)
    times({"depthwise": 1.0, "grouped": 1.1, DENSE: 5.0}, lambda deployed: 10 - convolutions(deployed))
    tried = {name for name in deploy(net, x, search=budget).deployment.networks if ": " in name}
    assert not tried
    assert any(": " in name for name in deploy(net, x, search=SearchBudget()).deployment.networks)


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


def test_layers_of_other_geometry_are_timed_on_their_own():
    """Stride, padding, dilation and padding mode decide which form is fastest, and which there are."""
    geometries = [{}, {"stride": 2}, {"dilation": 2}, {"padding": 2}, {"padding_mode": "reflect"}, {}]
    layers = [nn.Conv2d(4, 4, 3, **{"padding": 1, **geometry}) for geometry in geometries]

    class Parallel(nn.ModuleList):
        def forward(self, x):
            return [layer(x) for layer in self]

    net = Parallel([norton.decompose(conv, 1, starts=1, iterations=1) for conv in layers]).eval()
    x = torch.randn(1, 4, 8, 8)
    with Progress(disable=True) as bar:
        search = FormSearch(fold(net, x), x, 1, None, bar)
    assert sorted(map(len, search.groups.values())) == [1, 1, 1, 1, 2]
