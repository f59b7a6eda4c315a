"""The five networks against the released checkpoints' layouts, logits and counts."""

import csv
import json

import pytest
import torch
from helpers.repository import ARCHITECTURES, REPOSITORY

import norton
from experiments.paper.fill import fill, image
from norton.measure.counting import percent_removed

pytestmark = pytest.mark.quick

PAPER = REPOSITORY / "experiments" / "paper"
LAYOUTS = json.loads((PAPER / "published_layout.json").read_text())
ROWS = [row for row in csv.DictReader((PAPER / "norton_rows.csv").open()) if row["exact_macs"]]
RANKS = list(csv.DictReader((PAPER / "rank_ablation.csv").open()))
ABLATION = list(csv.DictReader((PAPER / "rank_ratio_ablation.csv").open()))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout["arch"])
def test_layout(layout):
    net = norton.build(layout["arch"], layout["rank"], layout["compress_rate"])
    assert [(k, list(v.shape)) for k, v in net.state_dict().items()] == list(layout["keys"].items())
    assert sum(p.numel() for p in net.parameters()) == layout["params"]


@pytest.mark.parametrize("layout", [e for e in LAYOUTS if "logits_first_10" in e], ids=lambda layout: layout["arch"])
@pytest.mark.parametrize("form", ["factored", "grouped", "composed"])
def test_logits(layout, form):
    net = fill(norton.build(layout["arch"], layout["rank"], layout["compress_rate"]))
    norton.set_form_(net, form)
    with torch.no_grad():
        logits = net(image(net.input_size[-1]))[:, :10]
    torch.testing.assert_close(logits, torch.tensor(layout["logits_first_10"]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['arch']}-{row['rank']}-{row['published_macs']}")
def test_published_counts(row):
    cost = norton.complexity(norton.build(row["arch"], int(row["rank"]), row["compress_rate"]))
    assert cost.macs == int(row["exact_macs"])
    assert cost.params == int(row["exact_params"])
    assert cost.params_printed == int(row["exact_params_without_block_bias"])


@pytest.mark.parametrize("row", ABLATION, ids=lambda row: row["name"])
def test_ablation_counts(row):
    cost = norton.complexity(norton.build("vgg_16_bn", int(row["rank"]), row["compress_rate"]))
    assert (cost.macs, cost.params) == (int(row["exact_macs"]), int(row["exact_params"]))


@pytest.mark.parametrize("row", RANKS, ids=lambda row: f"rank-{row['rank']}")
def test_rank_ablation_counts(row):
    """Percentages as printed, to 0.02 points; the parameters with the blocks' biases."""
    dense = norton.complexity(norton.build("vgg_16_bn"))
    cost = norton.complexity(norton.build("vgg_16_bn", int(row["rank"])))
    for part, whole, printed in [
        (cost.macs, dense.macs, row["macs_reduced_percent"]),
        (cost.params, dense.params, row["params_reduced_percent"]),
    ]:
        assert percent_removed(part, whole) == pytest.approx(float(printed), abs=0.02)


@pytest.mark.parametrize("row", ABLATION, ids=lambda row: row["name"])
def test_rank_ratio_percentages(row):
    dense = norton.complexity(norton.build("vgg_16_bn"))
    cost = norton.complexity(norton.build("vgg_16_bn", int(row["rank"]), row["compress_rate"]))
    assert percent_removed(cost.macs, dense.macs) == pytest.approx(float(row["macs_reduced_percent"]), abs=0.02)
    for printed in ("params_reduced_percent", "published_params_reduced_percent"):
        assert percent_removed(cost.params, dense.params) == pytest.approx(float(row[printed]), abs=0.02)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_pruning_gives_the_published_layout(arch):
    rates = {"resnet_50": "[0.1]*4+[0.5]*16", "densenet_40": "[0.]+[0.2]*38"}.get(arch, "[0.]+[0.3]*60")
    pruned = norton.prune(norton.build(arch, rank=2), rates)
    built = norton.build(arch, 2, rates)
    shapes = [{k: v.shape for k, v in net.state_dict().items()} for net in (pruned, built)]
    assert shapes[0] == shapes[1]


def test_other_class_count():
    assert norton.build("resnet_56", 1, num_classes=7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("arguments, message", [
    (("vgg", 1), "unknown network 'vgg'.*resnet_56"),
    (("resnet_56", 10), "exceeds 9"),
    (("resnet_56", -1), "at least 1"),
    (("resnet_56", 1, "[0.1]*29"), "needs 30 rates, got 29"),
    (("vgg_16_bn", 1, "[0.1]*11"), "needs 13"),
    (("densenet_40", 1, "[0.]+[0.95]*38"), "dense1.0.conv1.*leaves none of its 12"),
    (("resnet_56", 1, None, 0), "num_classes"),
])  # fmt: skip
def test_bad_input(arguments, message):
    with pytest.raises(norton.InputError, match=message):
        norton.build(*arguments)


def test_vgg_takes_twelve_rates():
    net = norton.build("vgg_16_bn", 1, "[0.5]*12")
    assert net.features.conv15.out_channels == 256
    assert net.features.conv16.out_channels == 512
