"""The metric in which the output error of a layer is the distance between its weight and another one."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Metric:
    """The positive definite matrix S of the distance (w - v)ᵀ S (w - v) between flattened filters, of D numbers each.

    blocks: S, (D, D); or its diagonal blocks, with zeros beside them.  level: what a ridge has added to its diagonal.
    """

    def __init__(self, blocks: Sequence[Tensor], level: float = 0.0):
        self.blocks, self.level = list(blocks), level
        self.sizes = [len(block) for block in self.blocks]

    def by_group(self) -> list["Metric"]:
        """The metric of each group of filters: this one."""
        return [self]

    @property
    def trace(self) -> float:
        return sum(block.diagonal().sum().item() for block in self.blocks)

    def ridged(self, ridge: float, least: float = 0.0) -> "Metric":
        """With `ridge` times the mean of the diagonal added to it, but not less than `least`."""
        # Where nothing but zeros is read, any weight does; the unit matrix then keeps the one that is there.
        level = max(ridge * self.trace / sum(self.sizes), least)
        level = level if level > 0 else 1.0
        blocks = [block.clone() for block in self.blocks]
        for block in blocks:
            block.diagonal().add_(level)
        return Metric(blocks, self.level + level)

    def to(self, dtype: torch.dtype) -> "Metric":
        return Metric([block.to(dtype) for block in self.blocks], self.level)

    def times(self, rows: Tensor) -> Tensor:
        """(..., D) rows, each times S."""
        parts = rows.split(self.sizes, dim=-1)
        return torch.cat([part @ block for part, block in zip(parts, self.blocks, strict=True)], dim=-1)

    def solve(self, rows: Tensor) -> Tensor:
        """(n, D): the rows times the inverse of S."""
        parts = rows.split(self.sizes, dim=-1)
        found = [self._solved(part, block) for part, block in zip(parts, self.blocks, strict=True)]
        return torch.cat(found, dim=-1)

    def _solved(self, rows: Tensor, block: Tensor) -> Tensor:
        factor, failed = torch.linalg.cholesky_ex(block)
        if not failed:
            return torch.cholesky_solve(rows.mT, factor).mT
        values, vectors = torch.linalg.eigh(block)  # of inputs that do not vary, rounding leaves less than nothing
        return (rows @ vectors / values.clamp_min(self.level)) @ vectors.mT

    def squares(self, rows: Tensor) -> Tensor:
        """(n,): wᵀ S w of each row."""
        return (rows * self.times(rows)).sum(-1)

    def squares_without_ridge(self, rows: Tensor) -> Tensor:
        """(n,): the same of S before a ridge was added, so the expected squared error of each output."""
        return (self.squares(rows) - self.level * rows.square().sum(-1)).clamp_min(0)


class GroupedMetric(Metric):
    """A metric for each group of the filters of a grouped convolution, which read channels of their own.

    rows: as many for each group, those of the first group first, of D numbers each.
    """

    def __init__(self, metrics: Sequence[Metric]):
        super().__init__([block for metric in metrics for block in metric.blocks], metrics[0].level)
        self.metrics = list(metrics)

    def by_group(self) -> list[Metric]:
        return self.metrics

    def ridged(self, ridge: float, least: float = 0.0) -> Metric:
        return GroupedMetric([metric.ridged(ridge, least) for metric in self.metrics])

    def to(self, dtype: torch.dtype) -> Metric:
        return GroupedMetric([metric.to(dtype) for metric in self.metrics])

    def times(self, rows: Tensor) -> Tensor:
        return torch.cat([metric.times(part) for metric, part in self._parts(rows)])

    def solve(self, rows: Tensor) -> Tensor:
        return torch.cat([metric.solve(part) for metric, part in self._parts(rows)])

    def squares_without_ridge(self, rows: Tensor) -> Tensor:
        return torch.cat([metric.squares_without_ridge(part) for metric, part in self._parts(rows)])

    def _parts(self, rows: Tensor) -> list[tuple[Metric, Tensor]]:
        return list(zip(self.metrics, rows.chunk(len(self.metrics)), strict=True))
