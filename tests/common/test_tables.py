"""Results print as short tables: aligned text, and HTML in a notebook."""

import copy
import pickle

import pytest
import torch
from torch import nn

import norton
from norton.common.tables import MOST_ROWS, html_table, text_table
from norton.deployment.record import Deployment

pytestmark = pytest.mark.quick

ROWS = [
    {"layer": "conv1", "rank": None, "MACs": 1234567, "error": 0.12345},
    {"layer": "fc", "rank": "2", "MACs": 7, "error": 2.0},
]


def test_text():
    assert text_table(ROWS, "title").splitlines() == [
        "title",
        "layer  rank       MACs  error",
        "conv1     -  1,234,567  0.123",
        "fc        2          7      2",
    ]
    assert text_table([], "nothing") == "nothing"
    lines = text_table(ROWS * 30, "many").splitlines()
    assert len(lines) == MOST_ROWS + 3 and lines[-1] == f"... {60 - MOST_ROWS} more"


def test_html():
    text = html_table([{"<name>": "a & b"}], "x < y")
    assert text == (
        "<table><caption>x &lt; y</caption><tr><th>&lt;name&gt;</th></tr><tr><td>a &amp; b</td></tr></table>"
    )
    assert html_table([], "nothing") == "<p>nothing</p>"
    assert html_table(ROWS * 30, "many").endswith(f"<p>... {60 - MOST_ROWS} more</p>")


@pytest.fixture(scope="module")
def net():
    return norton.build("vgg_16_bn", 0, [0.9] * 13)


@pytest.fixture(scope="module")
def small(net):
    return norton.decompose(net, {"features.conv0": 3, "features.conv1": 2}, starts=1, iterations=1)


def results(net, small):
    choice = norton.Deployment({"conv1": "depthwise"}, True, {}, {}, "abc", "2×3×8×8 float32", "a machine", "2", "0")
    times = {"conv1": {"depthwise, channels-last": 0.5, "dense, channels-last": 1.5}}
    timed = Deployment({"conv1": "depthwise"}, True, times, {"chosen": 2, "dense": 3}, "", "8×3×8×8", "here", "2", "0")
    return {
        "summary": norton.summary(small),
        "complexity": norton.complexity(net),
        "wiring": norton.wiring_of(net),
        "by hand": choice,
        "timed": timed,
    }


@pytest.mark.parametrize("name", ["summary", "complexity", "wiring", "by hand", "timed"])
def test_results_are_short_tables(name, net, small):
    found = results(net, small)[name]
    lines = repr(found).splitlines()
    assert 3 <= len(lines) <= 25 and max(map(len, lines)) <= 160 and " object at 0x" not in repr(found)
    assert found._repr_html_().startswith("<table>")
    assert repr(copy.deepcopy(found)) == repr(pickle.loads(pickle.dumps(found))) == repr(found)


def test_what_tables_say(net, small):
    found = {name: repr(result) for name, result in results(net, small).items()}
    cost = norton.complexity(small)
    title, head, first, second, third, *_ = found["summary"].splitlines()
    assert title == f"VGG16BN: {cost.macs:,} MACs, {cost.params:,} parameters; 2 of 15 layers decomposed"
    assert head.split() == ["layer", "kind", "rank", "filters", "MACs", "params"]
    macs = cost.by_layer["features.conv0"].macs
    assert first.split()[:5] == ["features.conv0", "CPConv2d", "3", "6", f"{macs:,}"]
    assert [line.split()[2] for line in (second, third)] == ["2", "dense"]
    assert found["complexity"].splitlines()[0].endswith("parameters (convention norton)")
    assert "it is the network's output" not in found["complexity"] and "it is the network's output" in found["wiring"]
    assert found["by hand"].splitlines()[0] == "2×3×8×8 float32 on a machine: depthwise, channels-last"
    assert found["timed"].splitlines()[-1].split() == ["conv1", "depthwise", "0.5", "1.5"]
    assert "2.00 ms, 3.00 ms with all layers dense" in found["timed"]


@pytest.mark.filterwarnings("ignore:a budget without")
def test_a_choice_is_a_short_table(net):
    options = norton.DecomposeOptions(objective="weights", options={"starts": 1, "iterations": 1})
    choice = norton.choose_ranks(net, macs=0.5, decomposition=options)
    title, head, *rows = repr(choice).splitlines()
    assert title == choice.sentence() and len(rows) == len(choice.costs) and head.split()[:2] == ["layer", "rank"]
    assert choice._repr_html_().count("<tr>") == len(rows) + 1


def test_a_compressed_network_is_a_short_table(small):
    assert repr(small) == repr(norton.summary(small)) and small._repr_html_() == norton.summary(small)._repr_html_()
    dense = norton.build("vgg_16_bn")
    assert repr(dense).startswith("VGG16BN(\n  (features)") and dense._repr_html_() is None
    apart = copy.deepcopy(small)
    apart.features = nn.Identity()  # cannot be counted any more
    assert repr(apart).startswith("VGG16BN(\n  (features): Identity()")


class Own(nn.Module):
    """A network that states nothing, with a layer that is called twice."""

    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.again(self.again(self.first(x)))


def test_networks_of_users_are_summed_up_too():
    torch.manual_seed(0)
    net = Own().eval()
    before = repr(net)
    small = norton.decompose(net, {"again": 2})
    found = norton.summary(small, (3, 8, 8))
    assert [row["rank"] for row in found.rows()] == ["dense", "2"]
    assert repr(net) == before and type(small) is Own
    with pytest.raises(norton.InputError, match="states no input size"):
        norton.summary(small)
