"""Filter-wise CP decomposition: all filters of a layer in one batched alternating least squares.

CP is due to Carroll & Chang 1970 and Harshman 1970; its alternating least squares are described in Kolda & Bader
2009, section 3.4.  Three things make it fast here:

- The best head factor for given body and tail is a linear least squares problem, so only the kh·kw × kh·kw Gram matrix
  of a filter enters the iteration, however many channels it has: the channels are compressed without loss.
- The filter is the last, contiguous index of every array.  A solve with an R×R matrix is then a short sequence of
  elementwise operations over all filters, where batched LAPACK would pay its call overhead for each filter.
- Each pass is extrapolated along its own step, and taken back where that did not help (after Ang et al. 2020), which
  needs about a quarter of the passes of the plain algorithm.

Filters may have any number of spatial dimensions, with a factor for each; body and tail are those of the usual two.
Inside this file arrays are laid out (R, k, n): term, position, filter.
"""

from collections.abc import Sequence
from functools import reduce
from operator import mul

import torch
from torch import Tensor

from norton.common.checks import check_whole_number
from norton.common.errors import InputError
from norton.decomposition.factors import Factors
from norton.decomposition.methods import check_rank

_PASSES_PER_CHECK = 10
_FIRST_MOMENTUM, _MAX_MOMENTUM = 0.5, 3.0
# torch runs an elementwise operation on up to 32768 elements in the calling thread. Larger ones wake its thread pool,
# which gains little on arrays that fit the cache and stalls, up to a hundredfold, where other programs use the cores.
_ELEMENTS_PER_OPERATION = 2**15


@torch.no_grad()
def cp_filters(
    weight: Tensor,
    rank: int,
    *,
    seed: int = 0,
    starts: int = 3,
    iterations: int = 300,
    tolerance: float = 5e-5,
    name: str = "weight",
) -> Factors:
    """Approximate each filter weight[o] by a sum of `rank` rank-one terms, head ∘ body ∘ tail.

    weight: (O, C, kh, kw), or with one or three spatial dimensions, on any device.  starts: how many starting points to
    try, of which each filter keeps its best; the first comes from an SVD, the others are random.  iterations: passes
    per start at most.  tolerance: decrease of ‖W[o] - Ŵ[o]‖ / ‖W[o]‖ per pass below which a filter is finished.  name:
    for error messages.

    Returns factors in the weight's dtype, terms from large to small, the columns of a term of equal norm.  They
    depend on the filter and the seed, not on the other filters of the layer.  Rank kh·kw is exact.

    Raises InputError for a weight that is not finite and a rank out of range.
    """
    for setting, value in (("starts", starts), ("iterations", iterations)):
        check_whole_number(f"{name}: {setting}", value, 1)
    filters, scale = _normalised(weight, name)
    kernel = weight.shape[2:]
    size = "x".join(map(str, kernel))
    rank = check_rank(name, rank, kernel.numel(), f"a {size} filter" if len(kernel) > 1 else f"a filter of {size}")
    if rank == kernel.numel():
        return _assemble(filters, scale, _identity_basis(kernel, filters), weight.dtype)
    gram = filters.mT @ filters
    energy = gram.diagonal(dim1=1, dim2=2).sum(1)
    gram /= torch.where(energy > 0, energy, 1)[:, None, None]
    spectrum, vectors = torch.linalg.eigh(gram)
    # No rank-R approximation of any kind, CP or not, leaves less than the smallest eigenvalues (Eckart & Young 1936).
    bound = spectrum[:, :-rank].clamp_min(0).sum(1)
    gram = gram.permute(1, 2, 0).contiguous()

    generator = torch.Generator().manual_seed(seed)
    padding = _random_start(rank, kernel, generator).to(gram)
    known = min(rank, filters.shape[1])  # there are no more principal directions than channels
    spatial = padding[..., None].repeat(1, 1, len(filters))
    spatial[:known] = _svd_start(vectors[:, :, -known:].flip(2), kernel)
    spatial, error = _alternate(gram, spatial, bound, kernel, iterations, tolerance)
    for _ in range(starts - 1):
        # The same start for every filter: a filter's result must not depend on how many there are.
        start = _random_start(rank, kernel, generator).to(gram)
        left = (error > _floor(bound, tolerance)).nonzero().flatten()
        again, error_again = _alternate(
            gram[..., left], start[..., None].repeat(1, 1, len(left)), bound[left], kernel, iterations, tolerance
        )
        better = error_again < error[left]
        spatial[..., left[better]] = again[..., better]
        error[left[better]] = error_again[better]
    return _assemble(filters, scale, spatial.split(tuple(kernel), dim=1), weight.dtype)


def _normalised(weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(O, C, kh·kw) filters with a largest entry of 1, and what they were divided by, (O,); zero filters stay."""
    if not torch.isfinite(weight).all():
        raise InputError(f"{name}: the weight has infinite or undefined entries; check the checkpoint it came from")
    filters = weight.flatten(2)
    if filters.dtype != torch.float64:
        filters = filters.float()
    scale = filters.abs().amax((1, 2))
    return filters / torch.where(scale > 0, scale, 1)[:, None, None], scale


def _floor(bound: Tensor, tolerance: float) -> Tensor:
    """The squared error at which a filter has nothing left to gain."""
    return bound * (1 + tolerance) + _noise(bound)


def _noise(like: Tensor) -> float:
    """The size of rounding errors in a squared error relative to a norm of 1."""
    return 10 * torch.finfo(like.dtype).eps


# Starting points: the spatial factors side by side in one array (R, kh + kw, n)


def _identity_basis(kernel: torch.Size, like: Tensor) -> list[Tensor]:
    """Spatial factors whose terms are the kh·kw unit matrices: with them, the head is the weight itself."""
    places = torch.unravel_index(torch.arange(kernel.numel()), kernel)
    factors = [torch.eye(size)[place] for size, place in zip(kernel, places, strict=True)]
    return [factor.to(like)[..., None].expand(-1, -1, len(like)) for factor in factors]


def _random_start(rank: int, kernel: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randn(rank, sum(kernel), generator=generator, dtype=torch.float64)


def _svd_start(vectors: Tensor, kernel: torch.Size) -> Tensor:
    """The best rank-one matrix of each principal direction; vectors: (n, kh·kw, R) → (R, kh + kw, n).

    In three dimensions a near one: first the best along the first, then of what is left along the others.
    """
    rest, found = vectors.mT, []
    for size in kernel[:-1]:
        left, _, right = torch.linalg.svd(rest.unflatten(2, (size, -1)))
        found.append(left[..., 0])
        rest = right[..., 0, :]
    return torch.cat([*found, rest], dim=2).permute(1, 2, 0)


# Alternating least squares


def _alternate(
    gram: Tensor, spatial: Tensor, bound: Tensor, kernel: torch.Size, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Run ALS from `spatial`; returns the final (R, kh + kw, n) and its squared error, (n,), where a filter's is 1."""
    size = max(1, len(bound))
    if gram.device.type == "cpu":
        rank, positions = len(spatial), kernel.numel()
        size = max(1, _ELEMENTS_PER_OPERATION // (rank * (rank + positions)))
    chunks = zip(gram.split(size, -1), spatial.split(size, -1), bound.split(size), strict=True)
    results = [_alternate_chunk(*chunk, kernel, iterations, tolerance) for chunk in chunks]
    return tuple(torch.cat(parts, dim=-1) for parts in zip(*results, strict=True))


def _alternate_chunk(
    gram: Tensor, spatial: Tensor, bound: Tensor, kernel: torch.Size, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    gram = gram.contiguous()
    result = spatial.clone()
    active = torch.arange(len(bound), device=bound.device)
    floor = _floor(bound, tolerance)
    columns, x = gram, spatial.contiguous()
    y, momentum = x, torch.full_like(bound, _FIRST_MOMENTUM)
    accepted = torch.full_like(bound, torch.inf)  # error at the last point that was no step back
    checked = accepted  # least error until the last check, as a norm
    for passed in range(1, iterations + 1):
        error, new = _one_pass(columns, y, kernel)
        # Where extrapolation went uphill, go back to the point before it and be less bold.
        worse = error > accepted
        new = torch.where(worse, x, new)
        y = torch.addcmul(new, momentum, new - x)
        x = new
        momentum = torch.where(worse, momentum * 0.5, (momentum * 1.1).clamp_max(_MAX_MOMENTUM))
        accepted = torch.where(worse, torch.inf, error)
        if passed % _PASSES_PER_CHECK:
            continue
        norm = torch.minimum(error.clamp_min(0).sqrt(), checked)
        going = (checked - norm > tolerance * _PASSES_PER_CHECK) & (error > floor)
        checked = norm
        if not going.all():  # at once, so that no filter's result depends on when others finish
            result[..., active] = x
            keep = going.nonzero().flatten()
            state = (active, floor, momentum, accepted, checked, columns, x, y)
            active, floor, momentum, accepted, checked, columns, x, y = (v.index_select(-1, keep) for v in state)
        if not len(active):
            break
    result[..., active] = x
    # float64, for there the ridge is too small to matter when two starts are compared.
    return result, _one_pass(gram.double(), result.double(), kernel)[0]


def _one_pass(gram: Tensor, spatial: Tensor, kernel: torch.Size) -> tuple[Tensor, Tensor]:
    """One pass of ALS: head, body, tail.

    gram: (kh·kw, kh·kw, n) with trace 1.  Returns the squared error (n,) of the *given* spatial factors with their best
    head, and the new ones, columns of norm 1.
    """
    factors = list(spatial.split(tuple(kernel), dim=1))
    terms = _terms(factors)
    # The best head is the filter (C, kh·kw) times `dual`; the filter itself is never needed.
    dual = _solve(_grams(factors), terms)
    projected = torch.zeros_like(dual)  # head by head: the filter contracted with the head, a kh×kw matrix
    for row, column in zip(gram, dual.unbind(1), strict=True):
        projected.addcmul_(row, column[:, None])
    error = 1 - (terms * projected).sum((0, 1))
    heads = _inner(dual, projected)
    norm = heads.diagonal(dim1=0, dim2=1).T.clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()  # to heads of norm 1
    heads = heads * norm * norm[:, None]
    projected = (projected * norm[:, None]).unflatten(1, kernel)
    for axis in range(len(factors)):
        others = factors[:axis] + factors[axis + 1 :]
        factors[axis] = _unit(_solve(heads * _grams(others) if others else heads, _along(projected, factors, axis)))
    return error, torch.cat(factors, dim=1)


def _along(projected: Tensor, factors: Sequence[Tensor], axis: int) -> Tensor:
    """(R, k, n): (R, kh, kw, n), contracted with the factors of all axes but one."""
    for other in reversed(range(len(factors))):
        if other != axis:
            after = projected.ndim - 3 - other
            projected = projected * factors[other][(slice(None), *[None] * other, slice(None), *[None] * after)]
            projected = projected.sum(1 + other)
    return projected


def _terms(factors: Sequence[Tensor]) -> Tensor:
    """(R, kh·kw, n): the outer products of the spatial factors, flattened."""
    return reduce(lambda terms, factor: (terms[:, :, None] * factor[:, None]).flatten(1, 2), factors)


def _grams(factors: Sequence[Tensor]) -> Tensor:
    """(R, R, n): the inner products of the outer products of factors."""
    return reduce(mul, [_inner(factor, factor) for factor in factors])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """(R, R, n): inner products of all columns of a with all of b, both (R, k, n)."""
    total = a[:, None, 0] * b[None, :, 0]
    for i in range(1, a.shape[1]):
        total.addcmul_(a[:, None, i], b[None, :, i])
    return total


def _unit(factor: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(factor, dim=1, keepdim=True)
    return factor / norm.clamp_min(torch.finfo(factor.dtype).tiny)


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve with positive definite matrices (R, R, n) and right sides (R, k, n), by Gauss-Jordan elimination.

    No pivoting: a ridge relative to the diagonal keeps the matrices definite, also where terms are nearly collinear.
    Where a term is zero, so are its row and its right sides, and its solution is zero.
    """
    rank = len(matrix)
    table = torch.cat([matrix, right], dim=1)
    table.diagonal(dim1=0, dim2=1).mul_(1 + _noise(matrix)).add_(torch.finfo(matrix.dtype).tiny)
    for k in range(rank):
        column, rest = table[:, k], table[:, k + 1 :]
        row = rest[k] / column[k]
        column[k] -= 1  # so that the elimination below leaves row k divided by its pivot
        rest.addcmul_(column[:, None], row, value=-1)
    return table[:, rank:]


# From spatial factors to all


def _assemble(filters: Tensor, scale: Tensor, spatial: Sequence[Tensor], dtype: torch.dtype) -> Factors:
    """The best heads for the spatial factors; then sort the terms, balance their norms, and undo the normalisation."""
    # float64: nearly collinear terms would amplify the rounding errors, and this is done only once.
    spatial = [factor.double() for factor in spatial]
    dual = _solve(_grams(spatial), _terms(spatial))
    # Contiguous, and the long side last: other layouts make a threaded product of each filter, up to 1000x slower.
    head = dual.permute(2, 0, 1).to(filters.dtype).contiguous() @ filters.mT  # (O, R, C)
    sizes = torch.linalg.vector_norm(head, dim=2).double()  # (O, R)
    order = sizes.argsort(dim=1, descending=True, stable=True)
    sizes = sizes.gather(1, order)
    balanced = (sizes * scale[:, None]).pow(1 / (1 + len(spatial)))
    shrink = torch.where(sizes > 0, balanced / sizes, 0).to(head.dtype)
    head = head.gather(1, order[..., None].expand_as(head)).mul_(shrink[..., None])
    head = head.permute(2, 1, 0).to(dtype).contiguous()
    rows = order.T[:, None]
    spatial = [
        (factor.gather(0, rows.expand_as(factor)) * balanced.T[:, None]).transpose(0, 1).to(dtype).contiguous()
        for factor in spatial
    ]
    return Factors(head, *spatial)
