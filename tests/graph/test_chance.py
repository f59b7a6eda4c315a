"""Networks that decide by Python's or NumPy's random numbers: cut alike whatever is drawn, and exactly in each way."""

import random
from random import random as drawn

import numpy as np
import pytest
import torch
from helpers.dead import with_dead_filters
from torch import nn

import norton
from norton.graph.chance import drawing

pytestmark = pytest.mark.quick
DRAW = {"python": lambda: random.random(), "by name": drawn, "numpy": np.random.rand}


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


class Block(nn.Module):
    def __init__(self, draw, chance):
        super().__init__()
        self.draw, self.chance = draw, chance
        self.a, self.b = nn.Conv2d(16, 12, 3, padding=1), nn.Conv2d(12, 16, 1)

    def forward(self, x):
        return x + self.b(self.a(x).relu()) if not self.training or DRAW[self.draw]() > self.chance else x


class Net(nn.Module):
    def __init__(self, draw="python", chance=0.2):
        super().__init__()
        self.stem, self.c, self.d = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 10, 1), nn.Conv2d(10, 5, 1)
        self.one, self.two = Block(draw, chance), Block(draw, chance)

    def forward(self, x):
        return self.d(self.c(self.two(self.one(self.stem(x).relu()))).relu())


class Rare(Net):
    """Another layer is called now and then, by numbers that no way of recording draws."""

    def __init__(self, draw="python", chance=0.2):
        super().__init__(draw, chance)
        self.rare = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        y = self.stem(x).relu()
        return self.d(self.c(self.rare(y) if 0.5 < random.random() < 0.5001 else self.one(self.two(y))))


def test_numbers_are_the_lowest_and_the_highest_and_drawn_as_before_afterwards():
    seeded(1)
    expected = [random.random(), DRAW["numpy"](), torch.rand(1).item()]
    seeded(1)
    for way, (low, high) in enumerate([(0, 1e-9), (1 - 1e-9, 1)]):
        with drawing(way) as draws:
            found = [random.random(), DRAW["numpy"]()]
            assert np.isfinite([random.gauss(0, 1), random.normalvariate(0, 1), *np.random.randn(9)]).all()  # noqa: NPY002
            torch.rand(np.random.randint(1, 7))  # noqa: NPY002
        assert all(low <= number <= high for number in found) and draws.used
    assert [random.random(), DRAW["numpy"](), torch.rand(1).item()] == expected
    with drawing(3) as draws:
        torch.rand(3)
    assert not draws.used


@pytest.mark.parametrize("draw", DRAW)
def test_what_is_passed_on_in_several_ways_stays(draw):
    found = set()
    for seed in range(2):
        seeded(seed)
        wiring = norton.wiring_of(Net(draw, 0.001 if seed % 2 else 0.2), (3, 8, 8))
        assert "goes another way here each time" in wiring.left_whole["stem"]
        found.add(tuple(wiring.left_whole))
    assert found == {("stem", "d")}  # the channels inside of blocks, and behind them, may go


@torch.no_grad()
def test_the_cut_network_computes_the_same_in_each_way():
    net = Net().double().train()
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).train()
    assert set(small.plan[-1]["keep"]) == {"one.a", "two.a", "c"}
    wiring = norton.wiring_of(net, (3, 8, 8))
    keep = {wiring.axis_of(name): kept for name, kept in small.plan[-1]["keep"].items()}
    dead, x = with_dead_filters(net, wiring.gone_filters(keep)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    outputs = set()
    for seed in range(40):
        random.seed(seed)
        expected = dead.train()(x)
        random.seed(seed)
        torch.testing.assert_close(small(x), expected)
        outputs.add(round(expected.sum().item(), 6))
    assert len(outputs) == 4


def test_a_rare_layer():
    whole = norton.wiring_of(Rare(), (3, 8, 8)).left_whole
    assert "rare" in whole["c"] and not {"one.a", "two.a"} & whole.keys()
