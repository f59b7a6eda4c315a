"""Reshapes by einops: followed as those by hand are."""

import pytest
import torch
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn

import norton

einops = pytest.importorskip("einops")


class Attention(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = einops.rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(self.scale).softmax(-1)
        return self.proj(einops.rearrange(torch.einsum("bhij,bhjd->bhid", weights, v), "b h n d -> b n (h d)"))


class Shuffled(nn.Module):
    """Convolutions with a shuffle of channels, two attentions of as many heads, and a mean over positions."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 16, 3)
        self.first, self.second = Attention(), Attention()
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = einops.rearrange(self.a(x), "b (g c) h w -> b (c g) h w", g=2)
        x = einops.rearrange(self.b(x), "b c h w -> b (h w) c")
        x = x + self.first(x)
        x = x + self.second(x)
        return self.fc(einops.reduce(x, "b n c -> b c", "mean"))


def test_what_einops_moves_is_followed():
    torch.manual_seed(0)
    net = Shuffled().double().eval()
    wiring = norton.wiring_of(net)
    widths = {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in wiring.frozen}
    assert widths == {"a": 6, "b": 16, "first.qkv": 4, "second.qkv": 4}
    small = norton.prune(net, 0.5, criterion="random", options=norton.PruneOptions(min_filters=1)).eval()
    assert (small.first.heads, small.second.heads, small.first.qkv.out_features) == (2, 2, 24)
    keep = {wiring.axis_of(name): kept for name, kept in small.plan[-1]["keep"].items()}
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), (x,))
    assert largest_error(outputs(small, (x,)), expected) < 1e-9
