"""The axes of a network: its channels grouped into units that go together, and units that are alike into axes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Channels = np.ndarray  # ids of channels, one for each position along a dimension of a tensor
Ties = Sequence[tuple[Channels, Channels]]  # channels that can only go together, position by position

MIXED = "its channels are mixed, so that none can go alone"
SHIFTED = "a shortcut moves its channels by position, and they are grouped, flattened or concatenated"


@dataclass(frozen=True)
class Axes:
    """Axes are numbered in the order in which layers write them.

    of, unit: id of a channel → its axis (-1 where no layer writes it), and the unit of that axis.
    writers: of each axis, the layers whose filters are its units.  filters: of a unit, in each of these.
    names: of the axes, after their first writers.  frozen: axis → why it must stay whole.
    shifts: pairs of axes that a crop-or-pad shortcut joins.
    """

    of: np.ndarray
    unit: np.ndarray
    widths: list[int]
    writers: list[list[str]]
    filters: list[list[int]]
    names: list[str]
    frozen: dict[int, str]
    shifts: list[tuple[int, int]]


def find_axes(
    count: int,
    ties: Ties,
    written: Mapping[str, Channels],
    used: Sequence[Channels],
    frozen: Sequence[tuple[Channels, str]],
    shifts: Ties,
) -> Axes:
    """The axes of `count` channels.

    written: layer → its filters.  used: what each layer reads or passes, and each parameter stands for.  Units are
    alike if the same layers write them, with as many filters each, the same use them, and both or none are frozen.
    """
    unit_of, units = connected(count, ties)
    reasons = _reasons(unit_of, units, frozen, shifts)
    first = np.full(units, count)  # filter of a unit, of those that layers write
    for filters in written.values():
        np.minimum.at(first, unit_of[filters], filters)
    while True:
        axis_of, within, widths = _alike(unit_of, units, first, [*written.values(), *used], reasons >= 0)
        edges = [_edge(axis_of, within, widths, unit_of, shift) for shift in shifts]
        crooked = [shift for shift, edge in zip(shifts, edges, strict=True) if edge is None]
        if not crooked:
            break
        shifts = [shift for shift, edge in zip(shifts, edges, strict=True) if edge is not None]
        frozen = [*frozen, *((np.concatenate(shift), SHIFTED) for shift in crooked)]
        reasons = _reasons(unit_of, units, frozen, shifts)
    of = axis_of[unit_of]
    writers: list[list[str]] = [[] for _ in widths]
    filters_of: list[list[int]] = [[] for _ in widths]
    for layer, filters in written.items():
        for axis, found in zip(*np.unique(of[filters], return_counts=True), strict=True):
            writers[axis].append(layer)
            filters_of[axis].append(int(found) // widths[axis])
    whole = {
        int(axis_of[unit]): frozen[reasons[unit]][1] for unit in np.flatnonzero((reasons >= 0) & (axis_of >= 0))[::-1]
    }
    for axis, width in enumerate(widths):
        if width == 1 < max(filters_of[axis]):
            whole.setdefault(axis, MIXED)
    return Axes(of, within[unit_of], widths, writers, filters_of, _names(writers), whole, [e for e in edges if e])


def connected(count: int, ties: Ties) -> tuple[np.ndarray, int]:
    """(id of a channel → unit, number of units)."""
    from scipy.sparse import coo_array  # which few commands need
    from scipy.sparse.csgraph import connected_components

    if not ties:
        return np.arange(count), count
    rows, columns = (np.concatenate(side) for side in zip(*ties, strict=True))
    tied = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    units, unit_of = connected_components(tied, directed=False)
    return unit_of, int(units)


def _reasons(unit_of: np.ndarray, units: int, frozen: Sequence[tuple[Channels, str]], shifts: Ties) -> np.ndarray:
    """Unit → the place in `frozen` of the first reason why it stays, -1 if there is none.

    A shortcut binds the order of both its sides, and what is frozen keeps its order.
    """
    reasons: np.ndarray = np.full(units, len(frozen))
    for place, (channels, _) in reversed(list(enumerate(frozen))):
        reasons[unit_of[channels]] = place
    changed = True
    while changed:
        changed = False
        for shift in shifts:
            both = unit_of[np.concatenate(shift)]
            found = reasons[both].min(initial=len(frozen))
            if found < len(frozen) and (reasons[both] == len(frozen)).any():
                reasons[both] = np.minimum(reasons[both], found)
                changed = True
    return np.where(reasons == len(frozen), -1, reasons)


def _alike(
    unit_of: np.ndarray, units: int, first: np.ndarray, places: Iterable[Channels], frozen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(unit → axis, unit → its number in that axis, widths of the axes); -1 for units that no layer writes."""
    generator = np.random.default_rng(0)
    kinds: np.ndarray = frozen.astype(np.uint64)  # a sum of large random numbers, which no other set of places has
    for channels in places:
        np.add.at(kinds, unit_of[channels], generator.integers(1 << 63, dtype=np.uint64))
    order = np.argsort(first, kind="stable")
    order = order[first[order] < len(unit_of)]
    _, start, kind = np.unique(kinds[order], return_index=True, return_inverse=True)
    axis_of: np.ndarray = np.full(units, -1)
    within: np.ndarray = np.zeros(units, dtype=int)
    number: np.ndarray = np.empty(len(start), dtype=int)
    number[np.argsort(start)] = np.arange(len(start))  # in the order of their first units
    axis_of[order] = number[kind]
    widths = np.bincount(number[kind], minlength=len(start))
    by_axis = order[np.argsort(axis_of[order], kind="stable")]
    within[by_axis] = np.arange(len(by_axis)) - np.repeat(np.cumsum(widths) - widths, widths)
    return axis_of, within, widths.tolist()


def _edge(
    axis_of: np.ndarray, within: np.ndarray, widths: list[int], unit_of: np.ndarray, shift: tuple[Channels, Channels]
) -> tuple[int, int] | None:
    """The axes that a shortcut joins, if each side is the channels of one axis, in their order."""
    found = []
    for channels in shift:
        axis = int(axis_of[unit_of[channels[0]]])
        plain = axis >= 0 and (axis_of[unit_of[channels]] == axis).all() and len(channels) == widths[axis]
        if not plain or (within[unit_of[channels]] != np.arange(len(channels))).any():
            return None
        found.append(axis)
    return found[0], found[1]


def _names(writers: list[list[str]]) -> list[str]:
    """The first writer of each axis, with a number where one layer is the first of several."""
    seen: dict[str, int] = {}
    names = []
    for layers in writers:
        seen[layers[0]] = seen.get(layers[0], 0) + 1
        names.append(layers[0] if seen[layers[0]] == 1 else f"{layers[0]}#{seen[layers[0]]}")
    return names
