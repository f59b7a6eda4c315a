"""From criteria to one score per channel of an axis: score each layer, normalise, tie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from norton.calibration.batches import Images
from norton.common.checks import check_number
from norton.common.errors import InputError
from norton.decomposition.factors import Factors
from norton.graph.layers import filters_first, groups_of
from norton.graph.wiring import Wiring
from norton.pruning.criteria.kinds import (
    CRITERIA,
    DistanceCriterion,
    LayerContext,
    LayerCriterion,
    NormCriterion,
    scores,
)
from norton.pruning.maps import map_scores
from norton.pruning.normalisation import TIES, normalised
from norton.pruning.options import CriterionSetting, PruneOptions
from norton.pruning.published import SELECTIONS

DEFAULTS = {"normalisation": (None, "rank"), "tied": (None, "average")}
COMBINATIONS = ("weighted", "intersection")
FITTED = {"outputs": ["compensated"], None: ["not compensated"]}  # in words, but for the default


@dataclass(frozen=True)
class Scoring:
    """How filters are scored: the arguments of `norton.prune` that say so, named as there.

    named: layer → filters of the criterion `index`.
    """

    criterion: CriterionSetting = "pabs"
    options: PruneOptions = PruneOptions()
    named: Mapping[str, Sequence[int]] = field(default_factory=dict)
    images: Images | None = None
    labels: Tensor | None = None
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        names = names_in(self.criterion)
        if "index" in names and len(names) > 1:
            raise InputError("criterion: index names filters and cannot be combined with others; prune twice")


def names_in(criterion: CriterionSetting) -> list[str]:
    """The criteria that a criterion consists of.  Raises InputError for what is none."""
    if isinstance(criterion, str):
        CRITERIA[criterion]
        return [criterion]
    form = "a name, {weighted: {l2: 0.7, fpgm: 0.3}} or {intersection: [l2, fpgm]}"
    if not isinstance(criterion, Mapping) or len(criterion) != 1:
        raise InputError(f"criterion is {criterion!r}; give {form}")
    ((how, parts),) = criterion.items()
    if how not in COMBINATIONS:
        raise InputError(f"criterion: unknown combination {how!r}; choose one of {', '.join(COMBINATIONS)}")
    if how == "weighted":
        return _names_weighted(parts)
    if isinstance(parts, str | Mapping) or not isinstance(parts, Sequence) or len(parts) < 2:
        raise InputError(f"criterion: intersection is of {parts!r}; give at least two criteria, [l2, fpgm]")
    for part in parts:
        if isinstance(part, Mapping) and "intersection" in part:
            raise InputError("criterion: an intersection inside another; name all criteria in one list")
    return [name for part in parts for name in names_in(part)]


def _names_weighted(parts: Mapping[str, float]) -> list[str]:
    if not isinstance(parts, Mapping) or not parts:
        raise InputError(f"criterion: weighted is {parts!r}; give criteria with weights, {{l2: 0.7, fpgm: 0.3}}")
    for name, weight in parts.items():
        CRITERIA[name]
        check_number(f"criterion: the weight of {name}", weight, above=0)
    return list(parts)


def asks_for(criterion: CriterionSetting) -> tuple[bool, bool]:
    """Whether a criterion needs images, and whether it needs their labels too."""
    names = names_in(criterion)
    return any(CRITERIA[name].needs_images for name in names), any(CRITERIA[name].needs_labels for name in names)


def has_distance(criterion: CriterionSetting) -> bool:
    """Whether distances between filters take part."""
    return any(isinstance(CRITERIA[name], DistanceCriterion) for name in names_in(criterion))


def describe(settings: Mapping) -> str:
    """The settings of `norton.prune` in a few words: the criterion, and of how it is used what is not the default."""
    words = [_words(settings["criterion"])]
    words += [f"{key} {settings[key]}" for key in ("normalisation", "tied") if settings.get(key) not in DEFAULTS[key]]
    words += ["global"] if settings.get("allocation") == "global" else []
    words += FITTED.get(settings.get("compensate", "auto"), [])
    return " ".join(words)


def _words(criterion: CriterionSetting) -> str:
    if isinstance(criterion, str):
        return criterion
    ((how, parts),) = criterion.items()
    if how == "weighted":
        return " + ".join(f"{weight:g} {name}" for name, weight in parts.items())
    return " and ".join(map(_words, parts))


def deciding(criterion: CriterionSetting) -> list[CriterionSetting]:
    """The criteria each of which must want a filter removed: those of an intersection, else the one."""
    if isinstance(criterion, Mapping) and "intersection" in criterion:
        return list(criterion["intersection"])
    return [criterion]


def axis_scores(
    net: nn.Module, wiring: Wiring, axes: Sequence[int], criterion: CriterionSetting, how: Scoring
) -> dict[int, np.ndarray]:
    """Axis → (channels,) score, larger = keep; -inf: goes whatever the rates say."""
    layers = [layer for axis in axes for layer in wiring.writers[axis]]
    weights = criterion["weighted"] if isinstance(criterion, Mapping) else {criterion: 1}
    found: dict[int, Any] = dict.fromkeys(axes, 0)
    for name, weight in weights.items():
        by_layer = layer_scores(net, wiring, layers, name, how)
        for axis in axes:
            units = [per_unit(wiring, axis, layer, by_layer[layer]) for layer in wiring.writers[axis]]
            scaled = np.stack([normalised(unit, how.options.normalisation) for unit in units])
            found[axis] = found[axis] + (scaled if weight == 1 else weight * scaled)
    return {axis: _tied(found[axis], how.options.tied) for axis in axes}


def per_unit(wiring: Wiring, axis: int, layer: str, score: Tensor) -> np.ndarray:
    """(width of the axis,) means over a layer's filters of each unit, of which groups, heads and the like have several.

    score: of all filters of the layer.
    """
    filters = wiring.written(layer)
    own = wiring.axis_at(filters) == axis
    sums: np.ndarray = np.zeros(wiring.width(axis))
    np.add.at(sums, wiring.unit_at(filters)[own], score.cpu().numpy()[own])
    return sums / (own.sum() // wiring.width(axis))


def _tied(found: np.ndarray, tied: str) -> np.ndarray:
    """(channels,) one score out of (layers, channels); what goes whatever the rates say goes for all."""
    return np.where((found == -np.inf).any(0), -np.inf, TIES[tied](found))


@torch.no_grad()
def layer_scores(
    net: nn.Module, wiring: Wiring, layers: Sequence[str], criterion: str, how: Scoring
) -> dict[str, Tensor]:
    """Layer → (filters,) score as the criterion gives it; what it cannot judge goes by the dense criterion."""
    if CRITERIA[criterion].needs_images:
        found = map_scores(net, layers, criterion, how.images, how.labels, progress=how.progress)
        unpassed = [name for name in layers if name not in found]
        return found | (layer_scores(net, wiring, unpassed, how.options.dense_criterion, how) if unpassed else {})
    by_scales = isinstance(CRITERIA[criterion], NormCriterion)
    scales = axis_scales(net, wiring) if by_scales else {}
    if by_scales and not scales:
        raise InputError(f"criterion {criterion!r} looks at BatchNorm, and this network has none; use one of weights")
    found = {}
    for name in track(layers, "score filters", disable=not how.progress, transient=True):
        try:
            found[name] = _layer_scores(net, wiring, name, criterion, how, scales)
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    return found


def _layer_scores(
    net: nn.Module, wiring: Wiring, name: str, criterion: str, how: Scoring, scales: Mapping[int, Tensor]
) -> Tensor:
    filters, judge, dense = filters_of(net.get_submodule(name)), CRITERIA[criterion], how.options.dense_criterion
    if isinstance(judge, LayerCriterion):
        return scores(LayerContext(name, filters, how.seed, tuple(how.named.get(name, ()))), criterion)
    if isinstance(judge, NormCriterion):
        return _scores_by_norms(wiring, name, criterion, scales, scores(filters, dense))
    if isinstance(judge, DistanceCriterion):
        selected = SELECTIONS[how.options.selection]
        return selected(filters, criterion) if judge.can_compare(filters) else scores(filters, dense)
    return scores(filters, criterion)


def _scores_by_norms(wiring: Wiring, name: str, criterion: str, scales: Mapping[int, Tensor], others: Tensor) -> Tensor:
    """(filters,) scores of a layer's filters by the norms behind them; `others` where there are none."""
    filters, found = wiring.written(name), others.clone()
    for axis in wiring.axes_in(filters) & scales.keys():
        own = np.flatnonzero(wiring.axis_at(filters) == axis)
        found[own] = scores(scales[axis], criterion).to(found)[wiring.unit_at(filters)[own]]
    return found


def filters_of(layer: nn.Module) -> Factors | Tensor:
    """A layer's filters: its factors where filters can be compared by them, else a dense weight, filters first.

    Filters of a grouped layer read different channels, so that their heads tell nothing of each other.
    """
    return layer.factors() if hasattr(layer, "factors") and groups_of(layer) == 1 else filters_first(layer)


def axis_scales(net: nn.Module, wiring: Wiring) -> dict[int, Tensor]:
    """Axis → (n, channels) weights γ of the n normalisations that pass it, for the axes that have some."""
    found: dict[int, list[Tensor]] = {}
    for name, channels in wiring.passes:
        layer = net.get_submodule(name)
        if not isinstance(layer, _BatchNorm) or layer.weight is None:
            continue
        scale = layer.weight.abs()
        for axis in wiring.axes_in(channels):
            own = np.flatnonzero(wiring.axis_at(channels) == axis)
            unit = torch.from_numpy(wiring.unit_at(channels)[own]).to(scale.device)
            sums = scale.new_zeros(wiring.width(axis)).index_add(0, unit, scale[own])
            found.setdefault(axis, []).append(sums / (len(own) // wiring.width(axis)))
    return {axis: torch.stack(scales) for axis, scales in found.items()}
