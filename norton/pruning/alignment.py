"""Which channels a network keeps, and in which order, where shortcuts move channels by position.

A crop-or-pad shortcut joins position p of one axis to position p + (difference of widths) // 2 of the next.  Before
pruning, the joined channels form *lanes* through the axes; after it, the joined positions form *slots*.  The pruned
network equals the masked one exactly when every slot holds channels of one lane, and no lane is spread over two slots
that meet.  Choosing the lanes with the best scores under that condition is a small assignment problem, solved exactly.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from norton.common.errors import InputError

Edge = tuple[int, int]
Lane = dict[int, int]  # axis → position


def connected(edges: Sequence[Edge]) -> list[set[int]]:
    """The sets of axes that shortcuts join."""
    components: list[set[int]] = []
    for edge in edges:
        touching = [c for c in components if c & set(edge)]
        components = [c for c in components if c not in touching] + [set(edge).union(*touching)]
    return components


def aligned_keep(
    widths: Mapping[int, int],
    targets: Mapping[int, int],
    scores: Mapping[int, np.ndarray],
    edges: Sequence[Edge],
    name: str = "residual stream",
) -> dict[int, list[int]]:
    """Axis → channels to keep, in their new order, for axes joined by shortcuts.

    widths, targets: axis → channels now and to be kept.  scores: axis → score per channel (larger = keep), comparable
    between the axes.  edges: (from, to).  Maximises the total score of what is kept.

    Raises InputError if no choice keeps every channel where its shortcut expects it.
    """
    lanes, slots = _lanes(widths, edges), _lanes(targets, edges)
    kinds = defaultdict(list)  # slots through the same axes are interchangeable
    for slot in slots:
        kinds[frozenset(slot)].append(slot)
    choice = _assign(list(kinds), [len(s) for s in kinds.values()], lanes, scores, edges, name)
    keep = {axis: [-1] * target for axis, target in targets.items()}
    for kind, chosen in choice.items():
        for slot, lane in zip(kinds[kind], chosen, strict=True):
            for axis in kind:
                keep[axis][slot[axis]] = lane[axis]
    return keep


def _lanes(widths: Mapping[int, int], edges: Sequence[Edge]) -> list[Lane]:
    """Positions joined through the shortcuts, in the order of their first position."""
    lane_of: dict[tuple[int, int], Lane] = {(a, p): {a: p} for a, width in widths.items() for p in range(width)}
    for a, b in edges:
        shift = (widths[b] - widths[a]) // 2
        for p in range(widths[a]):
            if 0 <= p + shift < widths[b]:
                first, second = lane_of[a, p], lane_of[b, p + shift]
                first.update(second)
                for node in second.items():
                    lane_of[node] = first
    return list({id(lane): lane for lane in lane_of.values()}.values())


def _assign(
    kinds: Sequence[frozenset[int]],
    counts: Sequence[int],
    lanes: Sequence[Lane],
    scores: Mapping[int, np.ndarray],
    edges: Sequence[Edge],
    name: str,
) -> dict[frozenset[int], list[Lane]]:
    """For each kind of slot, the lanes that fill its slots, in lane order (scipy's MILP solver, HiGHS)."""
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second to import, and few networks need it

    pairs = [(k, i) for k, kind in enumerate(kinds) for i, lane in enumerate(lanes) if kind <= lane.keys()]
    gains = np.array([sum(scores[axis][lanes[i][axis]] for axis in kinds[k]) for k, i in pairs])
    rows, lower, upper = [], [], []

    def constrain(chosen: Sequence[bool], low: int, high: int) -> None:
        rows.append(np.array(chosen, dtype=float))
        lower.append(low)
        upper.append(high)

    for k, count in enumerate(counts):
        constrain([kind == k for kind, _ in pairs], count, count)
    for i, lane in enumerate(lanes):
        meeting = [{a, b} for a, b in edges if a in lane and b in lane and _joined(lane, scores, a, b)]
        for axes in meeting + [{axis} for axis in lane]:
            constrain([j == i and bool(kinds[k] & axes) for k, j in pairs], 0, 1)
    solution = milp(
        -gains, integrality=np.ones(len(pairs)), bounds=Bounds(0, 1), constraints=LinearConstraint(rows, lower, upper)
    )
    if solution.x is None:
        raise InputError(
            f"{name}: no choice of channels fits these widths, because its shortcuts crop channels that would have to "
            "stay; keep more filters there"
        )
    chosen = defaultdict(list)
    for (k, i), taken in zip(pairs, solution.x, strict=True):
        if taken > 0.5:
            chosen[kinds[k]].append(lanes[i])
    return chosen


def _joined(lane: Lane, scores: Mapping[int, np.ndarray], a: int, b: int) -> bool:
    return lane[b] - lane[a] == (len(scores[b]) - len(scores[a])) // 2
