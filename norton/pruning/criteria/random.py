"""No criterion at all: what every other has to beat."""

import zlib

import torch
from torch import Tensor

from norton.pruning.criteria.kinds import LayerContext, filter_count, layer_score


@layer_score("random")
def random(context: LayerContext) -> Tensor:
    """(O,) numbers drawn evenly from [0, 1) by the seed and the layer's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{context.seed} {context.layer}".encode()))
    return torch.rand(filter_count(context.filters), generator=generator, dtype=torch.float64)
