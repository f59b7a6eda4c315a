"""The nuclear norm of the feature maps."""

from torch import Tensor

from norton.pruning.criteria.kinds import feature_score
from norton.pruning.spectra import singular_values


@feature_score("nuclear_norm")
def nuclear_norm(maps: Tensor) -> Tensor:
    """(N, O) sum of the singular values of each map (N, O, H, W).

    The map is taken after BatchNorm, or the scale of the filter would count, which BatchNorm takes away again; and
    before the activation, so that it is one and the same place in every network (see `norton.pruning.maps`).

    Source: the convex envelope of the rank, Fazel 2002; as a criterion Nota's NetsPresso Model Compressor.
    """
    return singular_values(maps).sum(-1)
