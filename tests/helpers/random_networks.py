"""Random networks: a specification is drawn, plain data that a failure prints, and a network built of it."""

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import nn

from helpers import random_parts  # noqa: F401  registers its blocks
from helpers.random_blocks import BATCH, BLOCKS, BRANCHES, DIMS, FORMS, POOL, Chain, conv

SIDES = {1: 12, 2: 8, 3: 4}
INPUTS = ("one", "optional", "gain")  # how the network takes its inputs
TWO_INPUTS = ("sum", "concat", "gate")
HEADS = ("features", "maps", "dict", "flat", "tuple", "hidden", "nested")
BATCH_SIZE = 3


class RandomNet(nn.Module):
    """dims: of its images.  inputs, head: one of the names above.  specs: its blocks, (name, form, inner blocks)."""

    def __init__(self, dims, inputs, head, specs):
        super().__init__()
        self.dims, self.inputs, self.head = dims, inputs, head
        self.input_size = (3, *[SIDES[dims]] * dims)
        self.stem = conv(dims, 3, 8, bias=False)
        self.norm = BATCH[dims](8)
        width = 8
        if inputs in TWO_INPUTS:
            self.other_stem = conv(dims, 3, 8)
            width = 16 if inputs == "concat" else 8
        self.blocks = Chain(dims, width, specs)
        width = self.blocks.out
        self.maps = conv(dims, width, 3, 1)
        self.pool = POOL[dims](1)
        self.fc = nn.Linear(width * 2**dims if head == "flat" else 8 if head == "hidden" else width, 5)
        if head == "hidden":
            self.mlp = nn.Sequential(nn.Linear(width, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        if head in ("features", "flat", "hidden"):
            del self.maps  # what a layer could meet that is never called stays whole
        if head == "maps":
            del self.fc

    def forward(self, x, other=None, *, gain=1.0):
        x = F.relu(self.norm(self.stem(x)))
        if other is not None:
            y = self.other_stem(other)
            x = {"sum": lambda: x + y, "concat": lambda: torch.cat([x, y], 1), "gate": lambda: x * y.sigmoid()}[
                self.inputs
            ]()
        x = self.blocks(x if self.inputs != "gain" else x * gain)
        if self.head == "maps":
            return self.maps(x)
        if self.head == "flat":
            y = F.adaptive_avg_pool1d(x, 2) if self.dims == 1 else F.interpolate(x, (2,) * self.dims)
            return self.fc(y.flatten(1))
        features = self.pool(x).flatten(1)
        y = self.fc(self.mlp(features) if self.head == "hidden" else features)
        if self.head == "dict":
            return {"logits": y, "maps": self.maps(x)}
        if self.head == "tuple":
            return self.maps(x), y
        return [y, {"aux": (self.maps(x), None)}] if self.head == "nested" else y


def example_of(spec) -> tuple:
    """Inputs of a network, at random."""
    dims, inputs, _, _ = spec
    generator = torch.Generator().manual_seed(1)
    count = 2 if inputs in TWO_INPUTS else 1
    size = (BATCH_SIZE, 3, *[SIDES[dims]] * dims)
    return tuple(torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count))


@torch.no_grad()
def build(spec) -> nn.Module:
    """A network in double precision, in evaluation mode; statistics and entries of norms at random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = RandomNet(*spec).double()
        if net.inputs in TWO_INPUTS:
            net.example_input_array = example_of(spec)
        for layer in net.modules():
            if isinstance(getattr(layer, "running_var", None), torch.Tensor):
                layer.running_mean.uniform_(-0.2, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
            for key in ("weight", "bias"):
                entries = layer._parameters.get(key)
                if entries is not None and entries.dim() == 1:
                    entries.uniform_(*((0.5, 1.5) if key == "weight" else (-0.3, 0.3)))
    return net.eval()


@st.composite
def blocks(draw, dims, depth, without=()):
    """One to three blocks, with others inside of them."""
    names = [name for name in BLOCKS if dims in DIMS[name] and name not in without and (depth or not BRANCHES[name])]
    found = []
    for _ in range(draw(st.integers(1, 3 if depth == 2 else 2))):
        name = draw(st.sampled_from(names))
        inside = (*without, "unet") if name == "unet" else without  # maps are too small to be halved twice
        inner = [draw(blocks(dims, depth - 1, inside)) for _ in range(BRANCHES[name])]
        found.append((name, draw(st.integers(0, FORMS[name] - 1)), inner))
    return found


@st.composite
def specs(draw):
    """(dims, inputs, head, blocks) of a network."""
    dims = draw(st.sampled_from([2, 1, 3, 2]))
    return dims, draw(st.sampled_from(INPUTS + TWO_INPUTS)), draw(st.sampled_from(HEADS)), draw(blocks(dims, 2))
