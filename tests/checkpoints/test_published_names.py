"""Published file names are read in every spelling, and what cannot be read is named."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import norton
from norton.checkpoints.published_names import parse_name

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name, expected", [
    ("vgg_16_bn_[0.6]*6+[0.8]*7_1_90.32.pt", ("vgg_16_bn", None, "[0.6]*6+[0.8]*7", 1, 90.32)),
    ("vgg_16_bn_.0.6.6+.0.8.7_1_90.32.pt", ("vgg_16_bn", None, "[0.6]*6+[0.8]*7", 1, 90.32)),
    ("vgg_16_bn_.0.6..6+.0.8..7_1_90.32.pth", ("vgg_16_bn", None, "[0.6]*6+[0.8]*7", 1, 90.32)),
    ("vgg_16_bn_%5B0.6%5D*6%2B%5B0.8%5D*7_1_90.32.pt", ("vgg_16_bn", None, "[0.6]*6+[0.8]*7", 1, 90.32)),
    ("a/b/resnet_50_pabs_[0.]+[0.1]*2+[0.4]*5+[0.75]*12_1_73.65.pt",
     ("resnet_50", "pabs", "[0.]+[0.1]*2+[0.4]*5+[0.75]*12", 1, 73.65)),
    ("resnet_50_pabs_.0.+.0.1.2+.0.4.5+.0.75.12_1_73.65.pt",
     ("resnet_50", "pabs", "[0.]+[0.1]*2+[0.4]*5+[0.75]*12", 1, 73.65)),
    ("densenet_40_[0.]+[0.08]*6+[0.09]*6+[0.08]*26_8_94.86.pt",
     ("densenet_40", None, "[0.]+[0.08]*6+[0.09]*6+[0.08]*26", 8, 94.86)),
    ("vgg_16_bn_.0.13_2_94.11.pt", ("vgg_16_bn", None, "[0.]*13", 2, 94.11)),  # not [0.13]: 13 rates are needed
    ("resnet_56_[0.]*30_0_93", ("resnet_56", None, "[0.]*30", 0, 93.0)),
])  # fmt: skip
def test_names(name, expected):
    assert parse_name(name) == expected


@settings(deadline=None, max_examples=40)
@given(
    counts=st.integers(1, 12),
    first=st.sampled_from([0.0, 0.05, 0.1, 0.25, 0.6]),
    second=st.sampled_from([0.0, 0.2, 0.75, 0.9]),
    collapse=st.booleans(),
)
def test_the_safe_spelling_says_the_same(counts, first, second, collapse):
    rates = norton.format_rates([first] * counts + [second] * (13 - counts))
    safe = rates.replace("[", ".").replace("]", ".").replace("*", ".")
    while collapse and ".." in safe:
        safe = safe.replace("..", ".")
    found = parse_name(f"vgg_16_bn_{safe}_3_50.pt")
    assert norton.parse_rates(found.compress_rate) == norton.parse_rates(rates)


@pytest.mark.parametrize("name, part", [
    ("resnet_57_[0.1]*30_1_90.pt", "network 'resnet_57"),
    ("model.pt", "network 'model'"),
    ("vgg_16_bn.pt", "part after the network ''"),
    ("vgg_16_bn_best.pt", "part after the network 'best'"),
    ("vgg_16_bn_[0.6]*13_1_2_3_90.pt", "part after the network"),
    ("vgg_16_bn_7_[0.6]*13_1_90.pt", "criterion '7'"),
    ("vgg_16_bn_[0.6]*13_x_90.pt", "rank 'x'"),
    ("vgg_16_bn_[0.6]*13_1_best.pt", "accuracy 'best'"),
    ("vgg_16_bn_[0.6]*13_1_190.5.pt", "accuracy '190.5'"),
    ("vgg_16_bn_[0.6*13_1_90.pt", "rates '[0.6*13'"),
    ("vgg_16_bn_.0.6.6+.a.7_1_90.pt", "rates '.a.7'"),
    ("vgg_16_bn_.0.6+.0.6+.0.6_1_90.pt", "rates '.0.6+.0.6+.0.6'"),
])  # fmt: skip
def test_the_unreadable_part_is_named(name, part):
    with pytest.raises(norton.InputError) as caught:
        parse_name(name)
    assert part in str(caught.value)
    assert "NETWORK_RATES_RANK_TOP1.pt" in str(caught.value)
