"""Bring the scores of layers to one scale, before layers are compared or tied.

Each function takes and returns (filters,) float64 scores of one layer and keeps their order.  None gives NaN: where all
scores are equal, or zero, or there is but one, the result is the value named.
"""

import numpy as np

from norton.common.errors import InputError
from norton.common.registry import Registry

NORMALISATIONS = Registry("normalisation")
# How the scores of layers whose channels are summed become one, each over (layers, channels).
TIES = {
    "average": lambda found: np.mean(found, axis=0),
    "sum": lambda found: np.sum(found, axis=0),
    "union": lambda found: np.max(found, axis=0),
    "intersection": lambda found: np.min(found, axis=0),
}


def normalised(scores: np.ndarray, normalisation: str) -> np.ndarray:
    """(filters,) scores on the scale of a normalisation; -inf stays and does not count.

    Raises InputError for an unknown normalisation, and where `lamp` is asked of negative scores.
    """
    scores, function = np.asarray(scores, dtype=np.float64), NORMALISATIONS[normalisation]
    counted = scores != -np.inf
    result = np.full(scores.shape, -np.inf)
    if counted.any():
        result[counted] = function(scores[counted])
    return result


@NORMALISATIONS.register("none")
def none(scores: np.ndarray) -> np.ndarray:
    return scores


@NORMALISATIONS.register("rank")
def rank(scores: np.ndarray) -> np.ndarray:
    """The place in the layer's order, evenly from 0 to 1; of equal scores the lower index comes first; one alone: 0."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.linspace(0, 1, len(scores))
    return ranks


@NORMALISATIONS.register("standard")
def standard(scores: np.ndarray) -> np.ndarray:
    """The standard score, (x - mean) / standard deviation (of the population); all equal: 0."""
    if scores.max() == scores.min():
        return np.zeros(len(scores))
    centred = _scaled(scores) - _scaled(scores).mean()
    return centred / np.sqrt(np.mean(centred**2))


@NORMALISATIONS.register("sum_of_squares")
def sum_of_squares(scores: np.ndarray) -> np.ndarray:
    """x / sqrt(Σ x²), so that the squares of a layer sum to 1; all zero: 0.

    Source: Molchanov et al., Pruning convolutional neural networks for resource efficient inference, ICLR 2017, eq. 11.
    """
    scaled = _scaled(scores)
    total = np.sqrt(np.sum(scaled**2))
    return scaled / total if total else scaled


@NORMALISATIONS.register("linear")
def linear(scores: np.ndarray) -> np.ndarray:
    """(x - min) / (max - min), from 0 to 1; all equal: 1/2."""
    scaled = _scaled(scores)
    low, high = scaled.min(), scaled.max()
    return (scaled - low) / (high - low) if high > low else np.full(len(scores), 0.5)


@NORMALISATIONS.register("softmax")
def softmax(scores: np.ndarray) -> np.ndarray:
    """exp x / Σ exp x; it depends on the scale of the scores."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


@NORMALISATIONS.register("lamp")
def lamp(scores: np.ndarray) -> np.ndarray:
    """x² / Σ x'² over the x' >= x of the layer: the share of a filter in what is left when it goes; all zero: 0.

    The best filter of a layer has 1, so that one global threshold empties no layer.  Equal scores count each other.

    Source: Lee et al., Layer-adaptive sparsity for the magnitude-based pruning, ICLR 2021, there of single weights.
    """
    if scores.min() < 0:
        raise InputError(f"normalisation lamp: a score is {scores.min():.4g}; it needs a criterion of at least 0")
    squares: np.ndarray = _scaled(scores) ** 2
    _, where = np.unique(squares, return_inverse=True)
    sums = np.bincount(where, weights=squares)
    left = np.cumsum(sums[::-1])[::-1][where]
    return np.divide(squares, left, out=np.zeros(len(squares)), where=left > 0)


def _scaled(scores: np.ndarray) -> np.ndarray:
    """Scores over the largest magnitude, so that squares neither overflow nor vanish."""
    largest = np.abs(scores).max()
    return scores / largest if largest else scores
