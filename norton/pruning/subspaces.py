"""Principal angles between the factor matrices of every pair of filters.

Source: Björck & Golub, Numerical methods for computing angles between linear subspaces, Mathematics of Computation,
1973.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

# Columns dependent to this relative precision, or to that of the factors' own type, count as dependent.
DEPENDENT = 1e-7
# Below this sin² the difference 1 - cos² has lost half its digits: the sine is computed from the residual instead.
SMALL = 1e-8
# Elements of one block of Q_iᵀQ_j: on a CPU the block and its temporaries stay in the cache.
BLOCK = {"cpu": 2**20, "cuda": 2**26}


def sum_over_modes(factors: Iterable[Tensor], measure_: Callable[[Tensor], object] | None = None) -> Tensor:
    """(O, O) sum over the modes of sin² of the largest principal angle of every two filters, or a measure of it.

    factors: one (n, R, O) per mode.  measure_: changes sin² elementwise in place, with 0 staying 0.
    """
    total: Any = None
    for factor in factors:
        upper = sines_squared(factor)
        if measure_ is not None:
            filters = len(upper)
            for start, stop in _blocks(filters, 1, "cpu"):
                measure_(upper[start:stop, start:])
        total = upper if total is None else total.add_(upper)
    return total + total.T


def sines_squared(factor: Tensor) -> Tensor:
    """sin² of the largest principal angle between the column spaces of every two filters' factor matrices.

    factor: (n, R, O).  Returns (O, O) float64, the entries above the diagonal; the others are 0.  Column spaces are
    the true ones, of the numerical rank; spaces of different dimensions p, q have min(p, q) angles, and none, hence 0,
    if one of them is {0}.  Memory is O(O² + O n R).
    """
    basis, dims = orthonormal_bases(factor)
    size, filters = factor.shape[0], factor.shape[2]
    smallest, largest = int(dims.min()), int(dims.max())
    if smallest == size:
        return basis.new_zeros(filters, filters)
    full = dims == size
    if size - smallest < largest:
        # The angles other than 0 are those between the orthogonal complements, which have fewer dimensions.
        basis, dims = _complements(basis, size - dims)
        smallest, largest = size - largest, size - smallest
    if smallest == largest:
        return _upper_sines_squared(basis, None)
    # The angles are those of the smaller space to the larger: sorted by falling dimension, the later one of a pair.
    order = torch.argsort(dims, descending=True, stable=True)
    upper = _upper_sines_squared(basis[:, order], dims[order])
    back = torch.argsort(order)
    return (upper + upper.T)[back][:, back].masked_fill_(full | full[:, None], 0).triu_(1)


def orthonormal_bases(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the column spaces of a mode's factor matrices, and their dimensions.

    factor: (n, R, O).  Returns (D, O, n) float64, D the largest dimension, where a filter of a smaller one has zero
    vectors first; and the (O,) dimensions.
    """
    columns = factor.permute(2, 1, 0).contiguous().double()
    norms = torch.linalg.vector_norm(columns, dim=2, keepdim=True)
    columns = columns.div_(norms.where(norms > 0, 1))
    if columns.shape[1] == 1:
        return columns.transpose(0, 1), (norms > 0).flatten().long()
    tolerance = max(columns.shape[1] * torch.finfo(factor.dtype).eps, DEPENDENT)
    basis, _ = _orthonormalise(columns, tolerance)
    # The first pass is off by the square of the condition number, which a second one mends.
    basis, dims = _orthonormalise(basis, 0.5)
    return basis[:, basis.shape[1] - int(dims.max()) :].transpose(0, 1).contiguous(), dims


def _orthonormalise(columns: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Orthonormal vectors of the same span through the Gram matrix, zeros first; (O, R, n) → (O, R, n) and (O,)."""
    values, vectors = torch.linalg.eigh(columns @ columns.mT)
    spans = values > (tolerance**2 * values[:, -1:]).clamp_min(torch.finfo(torch.float64).tiny)
    return (vectors * values.where(spans, torch.inf).rsqrt()[:, None]).mT @ columns, spans.sum(1)


def _complements(basis: Tensor, dims: Tensor) -> tuple[Tensor, Tensor]:
    """Bases of the orthogonal complements, of dimensions dims (O,), in the form of `orthonormal_bases`."""
    values, vectors = torch.linalg.eigh(torch.einsum("doi,doj->oij", basis, basis))
    vectors = vectors * (values < 0.5)[:, None]
    return vectors[..., : int(dims.max())].flip(-1).permute(2, 0, 1).contiguous(), dims


def _upper_sines_squared(basis: Tensor, dims: Tensor | None) -> Tensor:
    """`sines_squared` from bases (D, O, n); dims: (O,) falling, None if all are D."""
    dim, filters, _ = basis.shape
    out = basis.new_zeros(filters, filters)
    for start, stop in _blocks(filters, dim, basis.device.type):
        sines = 1 - _smallest_cosines_squared(basis, dims, start, stop)
        out[start:stop, start:] = sines.triu_(1)
    small = (out < SMALL).triu_(1)
    if small.any():
        _refine_(out, basis, small.nonzero())
    return out


def _blocks(filters: int, dim: int, device: str) -> Iterator[tuple[int, int]]:
    size = BLOCK.get(device, BLOCK["cpu"]) // (filters * dim * dim)
    rows = max(1, min(size, -(-filters // 4)))
    for start in range(0, filters, rows):
        yield start, min(start + rows, filters)


def _smallest_cosines_squared(basis: Tensor, dims: Tensor | None, start: int, stop: int) -> Tensor:
    """cos² of the largest angle of each of the filters start..stop to each filter from start on."""
    dim, filters, size = basis.shape
    if dim == 1:
        cosines = (basis[0, start:stop] @ basis[0, start:].T).square_()
        return cosines if dims is None else cosines.where(dims[start:] > 0, 1)
    rows = basis[:, start:stop].reshape(-1, size)
    product = basis.new_empty(dim, dim, stop - start, filters - start)
    for s in range(dim):
        torch.mm(rows, basis[s, start:].T, out=product[s].flatten(0, 1))
    gram = torch.empty_like(product)
    for s in range(dim):
        torch.mul(product[s, 0], product[s:, 0], out=gram[s, s:])
        for r in range(1, dim):
            gram[s, s:].addcmul_(product[s, r], product[s:, r])
    if dims is not None:
        # Directions beyond a filter's own dimension get 1, the most a cos² can be, and so never the smallest value.
        for s in range(dim):
            gram[s, s] += dims[start:] < dim - s
    return smallest_eigenvalues_(gram).clamp_(0, 1)


def _refine_(out: Tensor, basis: Tensor, pairs: Tensor) -> None:
    """Recompute entries of `out` at pairs (m, 2) as ‖Q_j - Q_i Q_iᵀ Q_j‖₂², accurate however small."""
    dim, _, size = basis.shape
    for i, j in (chunk.T for chunk in pairs.split(max(1, BLOCK["cpu"] // (dim * size)))):
        first, second = basis[:, i].permute(1, 2, 0), basis[:, j].permute(1, 2, 0)
        residual = second - first @ (first.mT @ second)
        out[i, j] = torch.linalg.eigvalsh(residual.mT @ residual)[:, -1].clamp_(0, 1)


def smallest_eigenvalues_(matrix: Tensor) -> Tensor:
    """Smallest eigenvalue of many small positive semidefinite matrices at once; destroys its input.

    matrix: (d, d, ...) float64, d >= 2, of which the entries s <= t are read.  Returns (...).  LAPACK takes
    microseconds a matrix; here each step works on all of them: closed form for d = 2, otherwise Householder's
    tridiagonal form and on it Laguerre's iteration from 0.

    Source: Parlett, The Symmetric Eigenvalue Problem, SIAM 1998, sections 7.4 and 7.7; Laguerre's step from below the
    spectrum stays below it, and converges cubically: Wilkinson, The Algebraic Eigenvalue Problem, 1965, chapter 7.
    """
    if len(matrix) == 2:
        a, b, c = matrix[0, 0], matrix[0, 1], matrix[1, 1]
        return (a + c) / 2 - torch.hypot((a - c) / 2, b)
    return _smallest_root(*_tridiagonal_(matrix))


def _tridiagonal_(a: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Diagonal and squared off-diagonal of a tridiagonal matrix with the same eigenvalues."""
    diagonal, off_squared = [], []
    for s in range(1, len(a)):
        a[s, :s] = a[:s, s]
    while len(a) > 2:
        diagonal.append(a[0, 0])
        v, a = a[0, 1:], a[1:, 1:]
        square = v.square().sum(0)
        off_squared.append(square)
        pivot = torch.copysign(square.sqrt(), v[0])
        # H = 1 - v vᵀ / half maps the row to a multiple of the first unit vector; a row of zeros needs no map.
        half = torch.addcmul(square, pivot, v[0])
        inverse = half.reciprocal_().masked_fill_(square < 1e-100, 0)
        v[0] += pivot
        w = a[0] * v[0]
        for t in range(1, len(v)):
            w.addcmul_(a[t], v[t])
        w *= inverse
        w.addcmul_(v, (v * w).sum(0).mul_(inverse), value=-0.5)
        for s in range(len(v)):
            a[s].addcmul_(v[s], w, value=-1).addcmul_(w[s], v, value=-1)
    return [*diagonal, a[0, 0], a[1, 1]], [*off_squared, a[0, 1].square()]


def _smallest_root(diagonal: list[Tensor], off_squared: list[Tensor]) -> Tensor:
    """Smallest eigenvalue of positive semidefinite tridiagonal matrices, each argument one tensor per entry.

    The pivots q of LDLᵀ - x, whose product is the characteristic polynomial p(x), and their first two derivatives
    give Σ 1/(λ - x) = -p'/p and Σ 1/(λ - x)², from which Laguerre's step follows, without the overflow of p itself.
    """
    degree = len(diagonal)
    scale = sum(diagonal)
    # A pivot this small is at the root, to rounding.
    tiny = scale * 1e-17 + 1e-100
    x = torch.zeros_like(scale)
    for _ in range(40):
        inverse = torch.maximum(diagonal[0] - x, tiny).reciprocal_()
        first, second = -inverse, torch.zeros_like(x)  # q'/q and q''/q
        total, squares = inverse.clone(), inverse.square()
        for entry, off in zip(diagonal[1:], off_squared, strict=True):
            ratio = off * inverse
            inverse = torch.sub(entry, x).sub_(ratio)
            inverse = torch.maximum(inverse, tiny, out=inverse).reciprocal_()
            second = second.addcmul_(first, first, value=-2).mul_(ratio).mul_(inverse)
            first = first.mul_(ratio).sub_(1).mul_(inverse)
            total -= first
            squares.addcmul_(first, first).sub_(second)
        # For a cluster of roots n Σ² - (Σ)² is all rounding: a bit more of it keeps the step from passing the root.
        squares.mul_(degree * (1 + 1e-14))
        root = squares.addcmul_(total, total, value=-1).mul_(degree - 1).clamp_min_(0).sqrt_()
        # Infinities arise only from a pivot at the root: no step is left.
        step = (degree / root.add_(total)).nan_to_num_(0, 0, 0)
        x += step
        # Within a cluster of roots convergence is cubic only once steps are smaller than the cluster.
        if not (step > 1e-12 * x + 1e-15 * scale + 1e-30).any():
            break
    return x
