"""No criterion at all: what every other has to beat."""

import zlib

import torch
from torch import Tensor

from norton.pruning.criteria.kinds import Place, filter_count, place_score


@place_score("random")
def random(place: Place) -> Tensor:
    """(O,) numbers drawn evenly from [0, 1) by the seed and the layer's name."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{place.seed} {place.layer}".encode()))
    return torch.rand(filter_count(place.filters), generator=generator, dtype=torch.float64)
