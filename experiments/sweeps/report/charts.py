"""What the charts of a sweep show, as plain data, for pictures and the page alike."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from experiments import paper_tables
from experiments.sweeps.report.data import Row, dense_networks, mean_rate, score_label
from norton.cli.pictures import COLOURS

COSTS = {
    "macs": ("MACs (millions)", 1e6),
    "params": ("parameters (millions)", 1e6),
    "latency_percent": ("latency (% of the dense network's)", 1),
}
PUBLISHED = {"macs": 2, "params": 3}  # where `published` has them


@dataclass(frozen=True)
class Symbol:
    """A marker as matplotlib and plotly call it, and as text."""

    matplotlib: str
    plotly: str
    text: str


SYMBOLS = [
    Symbol("o", "circle", "●"),
    Symbol("s", "square", "■"),
    Symbol("D", "diamond", "◆"),
    Symbol("P", "cross", "✚"),
    Symbol("X", "x", "✖"),
    Symbol("^", "triangle-up", "▲"),
    Symbol("*", "star", "★"),
    Symbol("h", "hexagon", "⬢"),
]
DENSE = Symbol("*", "star", "★")


@dataclass(frozen=True)
class Series:
    """Configurations that are drawn alike; words: the entries of the legend that they belong to."""

    words: tuple[str, ...]
    colour: str
    symbol: Symbol
    means: list[Row]


@dataclass(frozen=True)
class Panel:
    """A score, called `score`, against one cost, in the unit of `label`; lists of (cost, score)."""

    cost: str
    label: str
    score: str
    unit: float
    series: list[Series]
    front: list[tuple[float, float]]
    denses: list[tuple[float, float]]
    paper: list[tuple[float, float, str]]  # with the method's name

    def x(self, mean: Row) -> float:
        return mean[self.cost] / self.unit


def panels(means: Sequence[Row], rows: Sequence[Row]) -> list[Panel]:
    """Accuracy against each cost that was measured.  The dense networks are points of the front like all others."""
    found = []
    for cost, (label, unit) in COSTS.items():
        measured = [mean for mean in means if mean[cost] is not None]
        if not measured:
            continue
        denses = [(dense[cost] / unit, dense["score"]) for dense in dense_networks(rows)]
        best = front([*((mean[cost] / unit, mean["score"]) for mean in measured), *denses])
        at = PUBLISHED.get(cost)
        paper = [(row[at] / unit, row[1], row[0]) for row in published(rows) if at and row[at]]
        found.append(
            Panel(
                cost, label, score_label(dense_networks(rows)), unit, all_series(measured, means), best, denses, paper
            )
        )
    return found


def all_series(measured: Sequence[Row], means: Sequence[Row]) -> list[Series]:
    """The configurations by colour and symbol; means: all, which decide on those."""
    colours, symbols, several = colours_of(means), symbols_of(means), len(symbols_of(means)) > 1
    groups: dict[tuple, list[Row]] = {}
    for mean in measured:
        groups.setdefault((colour_key(mean), symbol_key(mean)), []).append(mean)
    return [
        Series((*[colour] * bool(colour), *[symbol] * several), colours[colour], symbols[symbol], mine)
        for (colour, symbol), mine in groups.items()
    ]


def legend(means: Sequence[Row]) -> dict[str, tuple[str, Symbol]]:
    """Word → colour and symbol: what colours tell apart, then, in grey, what symbols do, then the dense network."""
    symbols = symbols_of(means)
    words = {word: (colour, SYMBOLS[0]) for word, colour in colours_of(means).items() if word}
    if len(symbols) > 1:
        words |= {word: ("#555555", symbol) for word, symbol in symbols.items() if word}
    return words | {"dense": ("#000000", DENSE)}


def colours_of(means: Sequence[Row]) -> dict[str | None, str]:
    keys = dict.fromkeys(colour_key(mean) for mean in means)
    return {key: COLOURS[number % len(COLOURS)] for number, key in enumerate(keys)}


def symbols_of(means: Sequence[Row]) -> dict[str, Symbol]:
    keys = dict.fromkeys(symbol_key(mean) for mean in means)
    return {key: SYMBOLS[number % len(SYMBOLS)] for number, key in enumerate(keys)}


def colour_key(mean: Row) -> str | None:
    """What colours tell apart: choices of rank_ratio, else ranks, else rates."""
    said = mean["said"]
    if "rank_ratio" in said:
        return str(said["rank_ratio"])
    return f"rank {said['rank']}" if "rank" in said else said.get("rates")


def symbol_key(mean: Row) -> str:
    """What symbols tell apart: criteria, and whatever else was swept beside ranks and rates."""
    said = {key: value for key, value in mean["said"].items() if key not in ("rank_ratio", "rank", "rates")}
    return ", ".join(
        str(value) if key == "criterion" else f"{key.split('.')[-1]} {value}" for key, value in said.items()
    )


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: the points (cost, accuracy) than which none costs no more and is better, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, value in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or value > best[-1][1]:
            best.append((cost, value))
    return best


class HeatMap(NamedTuple):
    """A score over rank and rates, None where it was not measured: scores[rates][rank]."""

    ranks: list
    rates: list[str]
    scores: list[list[float | None]]


def heat_maps(means: Sequence[Row]) -> dict[str | None, HeatMap]:
    """Criterion → map, with the best where something else was swept too.

    Where nothing is pruned no criterion decides: what was measured once is part of every map.
    """
    maps = {}
    unpruned = [m for m in means if "rank" in m["said"] and mean_rate(m["said"].get("rates", "")) == 0]
    for criterion in dict.fromkeys(mean["said"].get("criterion") for mean in means):
        mine = [m for m in means if m["said"].get("criterion") == criterion and {"rank", "rates"} <= m["said"].keys()]
        best: dict[tuple, float] = {}
        for m in mine:
            key = m["said"]["rates"], m["said"]["rank"]
            best[key] = max(m["score"], best.get(key, 0.0))
        for m in unpruned:
            best.setdefault((m["said"]["rates"], m["said"]["rank"]), m["score"])
        ranks = sorted({rank for _, rank in best}, key=lambda rank: (isinstance(rank, str), rank))
        rates = sorted({rates for rates, _ in best}, key=lambda rates: (mean_rate(rates), rates))
        # A few points that lie scattered are no map.
        if len(ranks) < 2 or len(rates) < 2 or 2 * len(best) <= len(ranks) * len(rates):
            continue
        maps[criterion] = HeatMap(ranks, rates, [[best.get((rate, rank)) for rank in ranks] for rate in rates])
    return maps


def heat_title(criterion: str | None, score: str) -> str:
    """score: what it is called, see `score_label`."""
    return f"{criterion}: {score}" if criterion else score


def budget_slices(means: Sequence[Row], budgets: Sequence[float] | None, tolerance: float) -> dict[float, list[Row]]:
    """Percentage of MACs removed → the configurations within the tolerance of it, the best first.

    budgets: those to show; None: every multiple of 5 that at least two configurations spend differently.
    """
    wanted = range(5, 100, 5) if budgets is None else budgets
    slices = {}
    for budget in wanted:
        inside = [mean for mean in means if abs(mean["macs_removed_percent"] - budget) <= tolerance]
        if len(inside) > 1 or (inside and budgets is not None):
            slices[budget] = sorted(inside, key=lambda mean: -mean["score"])
    return slices


def budget_title(budget: float, tolerance: float) -> str:
    return f"{budget:g} ± {tolerance:g} % fewer MACs"


def accuracy_range(means: Sequence[Row]) -> tuple[float, float]:
    """An axis on which differences show."""
    least, most = min(m["score"] - m["spread"] for m in means), max(m["score"] + m["spread"] for m in means)
    room = max(1.0, (most - least) * 0.25)
    return max(0.0, least - room), most + room


def published(rows: Sequence[Row]) -> list[tuple[str, float, float | None, float | None]]:
    """The paper's points for this network on this data: (method, top-1, MACs, parameters); none for other data."""
    if len({(row["arch"], row["data"], *row["dense"].values()) for row in rows}) > 1:
        return []
    arch, data = rows[0]["arch"], rows[0]["data"]
    lines = [line for line in paper_tables.read("classification.csv") if line["top1_percent"]]
    lines = [line for line in lines if (line["arch"], line["dataset"]) == (arch, data)]
    if not lines or paper_tables.count(arch, 0, None).params != rows[0]["dense"]["params"]:
        return []  # another network than those of the paper, or a narrower one
    return [
        (line["method"], float(line["top1_percent"]), _count(line["macs"]), _count(line["params"])) for line in lines
    ]


def _count(text: str) -> float | None:
    match = re.fullmatch(r"([\d.]+)([KMG])", text or "")
    return float(match[1]) * {"K": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else None
