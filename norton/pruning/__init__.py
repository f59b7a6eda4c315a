"""Pruning: choose the filters that can go, and remove them from the network for good.

`pruning` holds `prune`, `options` how it prunes.  The `criteria` say how good a filter is, a file each; `scoring` asks
them layer by layer (`maps` where they look at images), brings the scores to one scale (`normalisation`) and ties those
of summed layers.  `rates` are read and `allocation` turns them into widths; `channels` picks the best of that many,
where shortcuts move channels by position with the help of `alignment`.  `published` repeats two mistakes of the paper's
public code.

Imports `common`, `graph`, `calibration` and `decomposition`.  Cutting itself is `graph.slicing`; making up for what
went is `calibration.compensation`; rates for a budget are chosen in `budget`.
"""

from norton.pruning.criteria.kinds import CRITERIA, keep_filters, scores
from norton.pruning.options import PruneOptions, Pruning
from norton.pruning.pruning import check_prune, prune, spared
from norton.pruning.published import SELECTIONS
from norton.pruning.scoring import asks_for, describe, has_distance

__all__ = [
    "CRITERIA",
    "SELECTIONS",
    "PruneOptions",
    "Pruning",
    "asks_for",
    "check_prune",
    "describe",
    "has_distance",
    "keep_filters",
    "list_criteria",
    "prune",
    "scores",
    "spared",
]


def list_criteria() -> list[str]:
    """The criteria that `norton.prune` knows, sorted."""
    return sorted(CRITERIA)
