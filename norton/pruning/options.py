"""How a network is pruned, apart from rates and criterion, as one validated object that Python and the configs fill."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from norton.calibration import ImageSource
from norton.calibration.compensation import COMPENSATIONS
from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.pruning.criteria.kinds import CRITERIA, FilterCriterion
from norton.pruning.normalisation import NORMALISATIONS, TIES
from norton.pruning.published import SELECTIONS

ALLOCATIONS = ("rates", "global")
ROUNDINGS = ("up", "down", "nearest")
CriterionSetting = str | Mapping[str, Any]  # a name, or a combination of several


@dataclass(frozen=True)
class PruneOptions:
    """How `norton.prune` prunes; the config group `pruning`, apart from the criterion and the seed.

    dense_criterion: for what the criterion cannot judge: layers without factors where it compares factors (1×1
    convolutions above all), layers without BatchNorm where it looks at BatchNorm, and layers that no image passes where
    it looks at maps, such as auxiliary heads.

    selection: how distances between filters become scores: exact, or `published`, which repeats two mistakes of the
    paper's public code, see `norton.pruning.published`.

    normalisation: of a layer's scores, before layers are compared or tied, see `norton.pruning.normalisation`.  tied:
    how the scores of layers that write to one residual stream, and so keep the same channels, become one: average, sum,
    union (the best counts: kept if any would keep it) or intersection (the worst counts).

    allocation: `rates`, or `global`: the lowest normalised scores of all layers go until the fraction `compress_rate`
    of the filters has gone.  min_filters: that a layer keeps; None: 8, and 1 for a published list.  A layer that has
    fewer keeps all.  round_to, rounding: a layer's filters become a multiple, up, down or to the nearest, ties up.
    Both count filters, also where these go in groups.  Where shortcuts move channels by position, widths that no list
    states move to the nearest ones that fit, see `norton.pruning.alignment`.

    filters: layer → those that go, `"105, 8, 9, 11-13"`, for the criterion `index`.

    compensate: `outputs`: what is left of the layers is fitted to what they gave before, on calibration images, see
    `norton.calibration.compensation`; `auto`: where there are images; None: it is not.

    Raises InputError for an unknown name and a number out of range.
    """

    dense_criterion: str = "l2"
    selection: str = "exact"
    normalisation: str = "rank"
    tied: str = "average"
    allocation: str = "rates"
    min_filters: int | None = None
    round_to: int = 1
    rounding: str = "nearest"
    filters: Mapping[str, str | int | Sequence[int | str]] | None = None
    compensate: str | None = "auto"

    def __post_init__(self) -> None:
        if type(CRITERIA[self.dense_criterion]) is not FilterCriterion:
            raise InputError(f"dense_criterion is {self.dense_criterion!r}; choose one that scores weights, such as l2")
        names = {"selection": SELECTIONS, "tied": TIES, "allocation": ALLOCATIONS, "rounding": ROUNDINGS}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise InputError(f"unknown {name} {getattr(self, name)!r}; choose one of {', '.join(known)}")
        NORMALISATIONS[self.normalisation]
        for name in ("min_filters", "round_to"):
            if name != "min_filters" or self.min_filters is not None:
                check_whole_number(name, getattr(self, name), 1)
        if self.filters is not None and not isinstance(self.filters, Mapping):
            raise InputError(f"filters is {self.filters!r}; give {{LAYER: '105, 8, 9, 11-13'}}")
        if self.compensate is not None and self.compensate not in COMPENSATIONS:
            known = " or ".join(COMPENSATIONS)
            raise InputError(
                f"compensate is {self.compensate!r}; choose {known}, or None (null in a command) for not at all"
            )

    def compensates(self, images: Any) -> bool:
        """Whether layers are fitted to what they gave before, given these calibration images, or None."""
        return self.compensate is not None and images is not None


@dataclass(frozen=True)
class Pruning:
    """The arguments of `norton.prune` but rates, named as there: for `norton.choose_ranks`, which chooses the rates."""

    criterion: CriterionSetting = "pabs"
    options: PruneOptions = PruneOptions()
    images: ImageSource | None = None
    labels: Tensor | None = None
    seed: int = 0

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `norton.prune` that say the same."""
        return dict(vars(self))
