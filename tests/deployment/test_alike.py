"""Networks that are timed against each other are deployed alike."""

import pytest
import torch
from helpers.deployment import Small, close, norms
from helpers.networks import randomise_
from torch import nn

import norton
from norton import Deployment, InputError
from norton.common.errors import NortonWarning
from norton.deployment import comparing, deploying
from norton.deployment.comparing import deploy_alike
from norton.deployment.search import FormSearch
from norton.measure.latency import latencies


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


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def test_all_networks_stay_as_they_are_where_one_cannot_be_deployed(pair):
    pair["other"] = Random()
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
