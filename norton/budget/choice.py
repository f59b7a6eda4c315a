"""What a budget buys: the ranks and pruning rates that were chosen, with the errors and costs they come from."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from norton.budget.costs import QUANTITIES
from norton.common.tables import ShownAsTable
from norton.decomposition.ranks import Rank


@dataclass(frozen=True)
class Uniform:
    """The highest rank that all layers can have within a budget, each at most its full one.

    error: as of a `Choice`; layers count as left dense where the rank costs no less.
    """

    rank: int
    error: float
    share: float


@dataclass(frozen=True, repr=False)
class Choice(ShownAsTable):
    """What a budget buys, for `norton.decompose(net, choice.ranks)` and then `norton.prune(net, choice.rates)`.

    ranks: layer → rank, None where it stays dense; jointly all may, and then only `prune` is to follow.  rates: layer →
    fraction of its filters that goes; empty without pruning.  what: macs or params.  asked, share: to be kept, and
    kept, of them.  errors: layer → its relative output error, measured as `choose_ranks` says.  costs: layer →
    (before, after).  uniform: None where even rank 1 in all layers is above the budget.
    """

    ranks: dict[str, Rank | None]
    rates: dict[str, float]
    what: str
    asked: float
    share: float
    errors: dict[str, float]
    costs: dict[str, tuple[int, int]]
    uniform: Uniform | None

    @property
    def error(self) -> float:
        """The sum of the layers' errors."""
        return sum(self.errors.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, from which `from_dict` makes the choice again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Choice":
        """The choice that `as_dict` wrote."""
        uniform = data["uniform"] and Uniform(**data["uniform"])
        costs = {layer: tuple(cost) for layer, cost in data["costs"].items()}
        return cls(**{**data, "uniform": uniform, "costs": costs})

    def summary(self) -> dict[str, Any]:
        """The numbers that a checkpoint keeps; the ranks are in its plan."""
        return {self.what: self.asked, "kept": self.share, "output_error": self.error}

    def rows(self) -> list[dict[str, Any]]:
        """A row per layer that is decomposed, pruned, or reads what is pruned."""
        rows = []
        for layer, (before, after) in self.costs.items():
            rank = self.ranks.get(layer)
            row = {"layer": layer, "rank": "dense" if rank is None else str(rank).strip("[]")}
            if self.rates:
                row["filters removed %"] = f"{100 * self.rates.get(layer, 0.0):.0f}"
            cost = {f"{QUANTITIES[self.what]} before": f"{before:,}", f"{QUANTITIES[self.what]} after": f"{after:,}"}
            rows.append({**row, "output error": f"{self.errors.get(layer, 0.0):.4f}", **cost})
        return rows

    def title(self) -> str:
        return self.sentence()

    def sentence(self) -> str:
        """The choice beside the uniform one."""
        text = f"{100 * self.share:.2f}% of the {QUANTITIES[self.what]}, {100 * self.asked:g}% asked for; "
        text += f"output errors add up to {self.error:.4f}"
        if self.uniform is None:
            return f"{text}; no uniform rank is within the budget"
        other = self.uniform
        return f"{text}, at uniform rank {other.rank} to {other.error:.4f} with {100 * other.share:.2f}%"
