"""The output error of a layer at each of its ranks."""

import copy
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from norton.budget.layer_errors import relative_output_error, sampled_filters
from norton.calibration import Metric
from norton.decomposition import DECOMPOSITIONS
from norton.decomposition.options import DecomposeOptions, method_options
from norton.decomposition.ranks import Rank, possible_ranks, resolve_rank
from norton.graph.layers import groups_of, weight_of, width
from norton.graph.slicing import cut_outputs_

MOST_RANKS = 16  # of a layer that are tried, where it has more


def ranks_to_try(net: nn.Module, name: str, method: str, uniform: int | None) -> list[Rank]:
    """Ranks of a layer from all 1 on, at most `MOST_RANKS` and what the uniform rank is for it."""
    layer = net.get_submodule(name)
    found = possible_ranks(layer, method)
    if len(found) > MOST_RANKS:
        bare, shaped = copy.deepcopy(layer).to("meta"), DECOMPOSITIONS[method].shaped_like
        found = [rank for rank in found if _parameters(shaped(bare, rank)) < _parameters(bare)]
        found = [found[place] for place in np.unique(np.linspace(0, len(found) - 1, MOST_RANKS).round().astype(int))]
    own = None if uniform is None else resolve_rank(name, layer, uniform, method)
    return found if own is None or own in found else sorted([*found, own], key=np.sum)


def _parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


class RankCurve:
    """A layer's relative output error at each of its ranks.

    sweeps: of the fit to outputs; None: fitted to weights alone.  filters: so many are looked at where each is
    decomposed by itself.
    """

    def __init__(
        self,
        layer: nn.Module,
        name: str,
        ranks: Sequence[Rank],
        how: DecomposeOptions,
        sweeps: int | None,
        filters: int | None,
    ):
        self.layer, self.name, self.ranks, self.sweeps, self.seed = layer, name, ranks, sweeps, how.seed
        self.decomposition, self.options = DECOMPOSITIONS[how.method], dict(how.options)
        if sweeps is not None:
            defaults = method_options(how.method)
            changed = {option: value for option, value in how.options.items() if value != defaults[option]}
            self.options |= {**self.decomposition.comparison_options, **changed}
        self.filters = filters if self.decomposition.by_filter and groups_of(layer) == 1 else None
        self.errors = np.zeros(1)  # left dense, then at each rank

    def probe(self, weight: Tensor, metric: Metric | None) -> None:
        chosen = sampled_filters(len(weight), self.filters, self.seed).to(weight.device)
        # Of a network in half precision the weight comes in float32, in which it is fitted.
        dense, weight = copy.deepcopy(self.layer).to(weight.dtype), weight[chosen]
        if len(chosen) < width(dense):
            cut_outputs_(dense, chosen)
        found: list[float] = []
        for rank in self.ranks:
            small = self.decomposition.from_conv(dense, rank, name=self.name, seed=self.seed, **self.options)
            if self.sweeps is not None and metric is not None:
                small.fit_outputs_(weight, metric, self.sweeps)
            lost = (weight - weight_of(small)).flatten(1)
            # A higher rank can do whatever a lower one does.
            before = zip(found, self.ranks, strict=False)
            below = [error for error, other in before if np.all(np.less_equal(other, rank))]
            found.append(min([relative_output_error(lost, weight.flatten(1), metric), *below]))
        self.errors = np.array([0.0, *found])
