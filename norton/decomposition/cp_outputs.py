"""Filter-wise CP fitted to a layer's outputs: alternating least squares in the metric of what the layer reads.

The weight-space fit minimises ‖W[o] - Ŵ[o]‖²; here it is (w - ŵ)ᵀ S (w - ŵ), the expected squared error of the output
where S is the covariance of the layer's input patches (for layer-wise CP and Tucker: arXiv 2511.04494).  All filters of
a layer share S.  In each factor the problem is linear:

- the head of a filter has C·R unknowns.  A direct solution needs a matrix of (C·R)² numbers per filter; conjugate
  gradients need products with S alone, the same for all filters at any rank.  They are preconditioned by the nearest
  Kronecker product of a matrix of channels and one of positions, whose inverse is that of two small matrices.
- body and tail: once S is contracted with the heads on both sides, a matrix of (kh·kw·R)² numbers per filter is left,
  on which they alternate at no cost.

Filters of one or three spatial dimensions have as many factors in the place of body and tail.  Arrays here have the
filter first: head (O, R, C), spatial kernels (O, R, kh·kw).
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from norton.calibration import Metric
from norton.decomposition.factors import Factors, balanced

_NUMBERS_AT_ONCE = 2**25  # of the metric contracted with heads
_SPATIAL_PASSES = 8


@torch.no_grad()
def refit(
    factors: Factors, target: Tensor, metric: Metric, *, sweeps: int = 2, steps: int = 40, tolerance: float = 1e-5
) -> Factors:
    """Factors whose filters are nearer to those of `target` in a metric.

    factors: the start.  target: (O, C, kh, kw), the filters.  metric: of C·kh·kw numbers.  sweeps: of body and tail,
    then head, after the heads are solved for first; 0: the heads alone.  steps: of conjugate gradients for the heads,
    at most, and fewer for filters whose error is within about `tolerance` of the outputs' energy from the least (at
    1e-8 it took 30% longer and won nothing).

    Each filter is returned as it was where it came nearest, so none is ever worse than at the start.
    """
    kernel = target.shape[2:]
    target = target.flatten(1)
    pull = metric.times(target)  # (O, D)
    head, *spatial = best = [factor.permute(2, 1, 0).to(target) for factor in factors]
    least = metric.squares(target - _filters(head, spatial))
    for sweep in range(sweeps + 1):
        if sweep:
            spatial = _spatial(head, spatial, pull, metric, kernel)
        head = _heads(head, _kernels(spatial), pull, metric, steps, tolerance)
        error = metric.squares(target - _filters(head, spatial))
        better = error < least
        least = torch.where(better, error, least)
        best = [torch.where(better[:, None, None], new, old) for new, old in zip([head, *spatial], best, strict=True)]
        head, *spatial = best
    return balanced(Factors(*(factor.permute(2, 1, 0).to(factors.head) for factor in best)))


def _kernels(spatial: Sequence[Tensor]) -> Tensor:
    """(O, R, kh·kw): the spatial kernel of each term."""
    return reduce(lambda kernels, factor: (kernels[..., :, None] * factor[..., None, :]).flatten(2), spatial)


def _filters(head: Tensor, spatial: Sequence[Tensor]) -> Tensor:
    """(O, D)."""
    return (head.mT @ _kernels(spatial)).flatten(1)


# Heads


def _heads(head: Tensor, kernels: Tensor, pull: Tensor, metric: Metric, steps: int, tolerance: float) -> Tensor:
    """The best heads for given spatial kernels, by preconditioned conjugate gradients from `head`."""
    channels, spatial = _near_inverse(kernels, metric)

    def precondition(residual: Tensor) -> Tensor:  # (O, R, C)
        parts = residual.split([len(block) for block in channels], dim=2)
        return spatial @ torch.cat([part @ block for part, block in zip(parts, channels, strict=True)], dim=2)

    solved, rows = head.clone(), torch.arange(len(head), device=head.device)
    right = _onto(kernels, pull)
    residual = right - _times(head, kernels, metric)
    direction = z = precondition(residual)
    size = (residual * z).sum((1, 2))
    enough = tolerance * (right * precondition(right)).sum((1, 2))
    for _ in range(steps):
        going = size > enough
        if not going.any():
            break
        if going.sum() < 0.8 * len(rows):  # the others are done, and products with the metric are what takes time
            solved[rows] = head
            rows, head, kernels, spatial = rows[going], head[going], kernels[going], spatial[going]
            residual, direction, size, enough = residual[going], direction[going], size[going], enough[going]
            going = going[going]
        product = _times(direction, kernels, metric)
        curvature = (direction * product).sum((1, 2))
        step = torch.where(going & (curvature > 0), size / curvature, 0)[:, None, None]
        head = head + step * direction
        residual = residual - step * product
        z = precondition(residual)
        new = (residual * z).sum((1, 2))
        direction = z + torch.where(going & (size > 0), new / size, 0)[:, None, None] * direction
        size = torch.where(going, new, size)
    solved[rows] = head
    return solved


def _onto(kernels: Tensor, rows: Tensor) -> Tensor:
    """(O, R, C): flattened filters (O, D), contracted with the kernels."""
    return kernels @ rows.unflatten(1, (-1, kernels.shape[2])).mT


def _times(heads: Tensor, kernels: Tensor, metric: Metric) -> Tensor:
    """(O, R, C): the heads' matrices times these heads."""
    return _onto(kernels, metric.times((heads.mT @ kernels).flatten(1)))


def _near_inverse(kernels: Tensor, metric: Metric) -> tuple[list[Tensor], Tensor]:
    """The inverse of the heads' matrices where the metric is nearly a Kronecker product of channels and positions.

    That of channels (C, C), in blocks as the metric is, and for each filter that between its kernels, (O, R, R).
    """
    channels, spatial = _kronecker(metric, kernels.shape[2])
    gram = kernels @ spatial @ kernels.mT
    jitter = 1e-6 * gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(gram.dtype).tiny)
    gram = gram + jitter[:, None, None] * torch.eye(gram.shape[1]).to(gram)
    factors = [torch.cholesky_inverse(torch.linalg.cholesky(block.double())).to(gram) for block in channels]
    return factors, torch.linalg.inv(gram.double()).to(gram)


def _kronecker(metric: Metric, positions: int) -> tuple[list[Tensor], Tensor]:
    """Channels (C, C), in blocks as the metric is, and positions (kh·kw, kh·kw), whose Kronecker product is near it."""
    channels: list[Tensor] = []
    spatial: Any = 0
    for block in metric.blocks:
        table = block.unflatten(0, (-1, positions)).unflatten(2, (-1, positions))
        channels.append(table.diagonal(dim1=1, dim2=3).mean(-1))
        spatial = spatial + table.diagonal(dim1=0, dim2=2).sum(-1)
    return channels, spatial * positions / spatial.trace()


# Body and tail


def _spatial(head: Tensor, spatial: Sequence[Tensor], pull: Tensor, metric: Metric, kernel: torch.Size) -> list[Tensor]:
    """Better spatial factors (O, R, k) for given heads."""
    matrix, right = _contracted(head, pull, metric, kernel.numel())
    matrix = matrix.double().unflatten(2, tuple(kernel)).unflatten(-1, tuple(kernel))  # (O, R, kh, kw, R, kh, kw)
    right = right.double().unflatten(2, tuple(kernel))  # (O, R, kh, kw)
    factors = [factor.double() for factor in spatial]
    for _ in range(_SPATIAL_PASSES if len(factors) > 1 else 1):
        for axis in range(len(factors)):
            factors[axis] = _solve(*_along(matrix, right, factors, axis), factors[axis])
    return [factor.to(head) for factor in factors]


def _along(matrix: Tensor, right: Tensor, factors: Sequence[Tensor], axis: int) -> tuple[Tensor, Tensor]:
    """(O, R, k, R, k) and (O, R, k): both sides, contracted with the factors of all axes but one."""
    rows, columns = "ijk"[: len(factors)], "uvw"[: len(factors)]
    for other in range(len(factors)):
        if other == axis:
            continue
        row, column = "ijk"[other], "uvw"[other]
        rows_left, columns_left = rows.replace(row, ""), columns.replace(column, "")
        half = torch.einsum(f"nr{rows}s{columns},ns{column}->nr{rows}s{columns_left}", matrix, factors[other])
        matrix = torch.einsum(f"nr{rows}s{columns_left},nr{row}->nr{rows_left}s{columns_left}", half, factors[other])
        right = torch.einsum(f"nr{rows},nr{row}->nr{rows_left}", right, factors[other])
        rows, columns = rows_left, columns_left
    return matrix, right


def _contracted(head: Tensor, pull: Tensor, metric: Metric, positions: int) -> tuple[Tensor, Tensor]:
    """The metric between unit kernels under the given heads, (O, R, P, R, P), and their pull, (O, R, P)."""
    right = head @ pull.unflatten(1, (-1, positions))
    filters, rank = head.shape[:2]
    total = head.new_zeros(filters, rank, rank, positions * positions)
    start = 0
    for block in metric.blocks:
        count = len(block) // positions
        # (C, C, P·P): so that the contraction over channels is one product of matrices
        table = block.unflatten(0, (-1, positions)).unflatten(2, (-1, positions)).transpose(1, 2).flatten(2).flatten(1)
        own = head[:, :, start : start + count]
        size = max(1, _NUMBERS_AT_ONCE // (rank * table.shape[1]))
        for part, into in zip(own.split(size), total.split(size), strict=True):
            once = (part.flatten(0, 1) @ table).view(len(part), rank, count, -1)  # (n, R, C, P·P)
            into += part[:, None] @ once  # (n, R, R, P·P)
        start += count
    # [n, r, s, p·q] is between kernel p of head r (the first contraction) and kernel q of head s
    return total.unflatten(3, (positions, positions)).permute(0, 1, 3, 2, 4), right


def _solve(matrix: Tensor, right: Tensor, before: Tensor) -> Tensor:
    """Solve for (n, R, k) with matrices (n, R, k, R, k); where terms are nearly collinear, near to what was before."""
    n, rank, size = right.shape
    matrix = matrix.reshape(n, rank * size, rank * size)
    ridge = 1e-7 * matrix.diagonal(dim1=1, dim2=2).mean(1).clamp_min(torch.finfo(matrix.dtype).tiny)[:, None]
    system = matrix + torch.diag_embed(ridge.expand(-1, rank * size))
    right = right.reshape(n, -1) + ridge * before.reshape(n, -1)
    return torch.linalg.solve(system, right).view(n, rank, size)
