"""Attention over positions, and linear attention, without heads: products of queries, keys and values."""

import pytest
from helpers.between import Between, wiring_of_exact
from torch import nn

import norton


class Attending(Between):
    """between: (queries, keys, values), each (N, channels, positions) → what is attended, (N, channels, positions)."""

    def __init__(self, attend, inner):
        parts = {name: nn.Conv2d(16, width, 1) for name, width in (("q", inner), ("k", inner), ("v", 16))}
        super().__init__(
            lambda n, x: attend(*(part(x).flatten(2) for part in (n.q, n.k, n.v))).unflatten(2, (8, 8)), **parts
        )


def over_positions(q, k, v):
    return v @ (k.transpose(1, 2) @ q).softmax(1)


def linear(q, k, v):
    return (v @ k.softmax(-1).transpose(1, 2)) @ q


def linear_turned_round(q, k, v):
    return (q.transpose(1, 2) @ (k.softmax(-1) @ v.transpose(1, 2)) / 8).transpose(1, 2)


# Attention, the width of queries and keys → what stays whole of channels that meet others, each with each: the fewer.
CASES = {
    "over positions": (over_positions, 8, set()),
    "linear": (linear, 8, {"q", "k"}),
    "linear and wide": (linear, 24, {"v"}),
    "linear, turned round": (linear_turned_round, 8, {"q", "k"}),
    "linear and wide, turned round": (linear_turned_round, 24, {"v"}),
}


@pytest.mark.parametrize("what", CASES)
def test_products(what):
    attend, inner, whole = CASES[what]
    assert set(wiring_of_exact(lambda: Attending(attend, inner)).left_whole) == {"head"} | whole


def test_queries_and_keys_which_no_layer_reads_are_pruned():
    net = Attending(over_positions, 8).eval()
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8))
    assert small.q.out_channels == small.k.out_channels == 4
