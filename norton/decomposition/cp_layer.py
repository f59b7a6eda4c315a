"""Layer-wise CP: the whole weight a sum of R rank-one terms, run as four convolutions."""

from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, checked_weight, convolution, gram_svd, one_thread
from norton.decomposition.methods import DECOMPOSITIONS

_FIRST_MOMENTUM, _MAX_MOMENTUM, _GROWTH = 0.5, 3.0, 1.2
# Multiplications of a product with the whole weight. Below, threads wait for each other longer than they compute, ten
# times as long where other programs use the cores.
_WORTH_THREADS = 5e7


@DECOMPOSITIONS.register("cp_layer")
class CPLayerConv2d(LayerWise):
    """A convolution C → O as 1×1 C → R, depthwise kh×1, depthwise 1×kw, 1×1 R → O.

    W[o, c, i, j] ≈ Σ_r E[o, r] A[c, r] B[i, r] D[j, r].  Parameters: R (C + kh + kw + O).  At rank kh·kw·min(C, O)
    each position of the kernel has all terms of its own O × C matrix, so that is exact.

    Source: Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, ICLR 2015;
    alternating least squares as in Kolda & Bader 2009, section 3.4.
    """

    @classmethod
    def full_rank(cls, layer: nn.Conv2d) -> tuple[int, ...]:
        filters, channels, kh, kw = layer.weight.shape
        return (kh * kw * min(channels, filters),)

    @classmethod
    def shaped_like(cls, conv: nn.Conv2d, rank: int) -> Self:
        parts = {
            "reduce": convolution(conv.in_channels, rank, conv),
            "vertical": convolution(rank, rank, conv, rows=True, groups=rank),
            "horizontal": convolution(rank, rank, conv, columns=True, groups=rank),
            "expand": convolution(rank, conv.out_channels, conv),
        }
        return cls(parts, rank, conv)

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        rank: int,
        *,
        name: str = "conv",
        seed: int = 0,
        iterations: int = 100,
        tolerance: float = 1e-6,
    ) -> Self:
        """iterations: at most; tolerance: change of the relative error per pass below which they end.

        From two starts, by the SVDs of the unfoldings and the largest terms of the exact form, of which the better is
        kept.  The four columns of a term get equal norms.
        """
        weight = checked_weight(conv, name)
        scale = weight.abs().max()
        if scale == 0:
            return cls.of_weights(conv, rank, [part.zero_() for part in cls.shaped_like(conv, rank).parts()])
        with one_thread(weight.numel() * rank < _WORTH_THREADS):
            factors = best_terms(weight / scale, rank, rank == cls.full_rank(conv)[0], seed, iterations, tolerance)
        factors[0] = factors[0] * scale
        norms = [torch.linalg.vector_norm(factor, dim=0) for factor in factors]
        size = torch.stack(norms).prod(0).pow(1 / 4)
        expand, reduce, vertical, horizontal = (
            factor * (size / norm.where(norm > 0, 1)) for factor, norm in zip(factors, norms, strict=True)
        )
        return cls.of_weights(conv, rank, [reduce.T, vertical.T, horizontal.T, expand])

    def composed_weight(self) -> Tensor:
        reduce, vertical, horizontal, expand = (part.flatten(1) for part in self.parts())
        return torch.einsum("or,rc,ri,rj->ocij", expand, reduce, vertical, horizontal)


def best_terms(weight: Tensor, rank: int, full: bool, seed: int, iterations: int, tolerance: float) -> list[Tensor]:
    """Factors (O, R), (C, R), (kh, R), (kw, R), see `CPLayerConv2d.from_conv`; full: the rank is the full one."""
    exact = exact_terms(weight, rank)
    if full:
        return exact
    starts = [torch.stack(pair) for pair in zip(singular_terms(weight, rank, seed), exact, strict=True)]
    errors, found, _ = alternate(weight, starts, iterations, tolerance)
    return [factor[errors.argmin()] for factor in found]


def exact_terms(weight: Tensor, rank: int) -> list[Tensor]:
    """The `rank` largest terms of the exact form, as factors (O, R), (C, R), (kh, R), (kw, R).

    Each position (i, j) of the kernel has the terms of the SVD of its O × C matrix.
    """
    kh, kw = weight.shape[2:]
    u, s, vh = torch.linalg.svd(weight.permute(2, 3, 0, 1), full_matrices=False)
    largest = torch.argsort(s.flatten(), descending=True, stable=True)[:rank]
    i, j, term = torch.unravel_index(largest, s.shape)
    eye = torch.eye(max(kh, kw), dtype=weight.dtype, device=weight.device)
    return [(u[i, j, :, term] * s[i, j, term, None]).T, vh[i, j, term].T, eye[:kh, i], eye[:kw, j]]


def singular_terms(weight: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Leading singular vectors of the unfoldings, filled up with random columns, as tensorly's `parafac` starts."""
    generator = torch.Generator(weight.device).manual_seed(seed)
    start = []
    for mode in range(4):
        vectors = gram_svd(weight.movedim(mode, 0).flatten(1), rank)[0]
        size = len(vectors), rank - vectors.shape[1]
        more = torch.rand(size, generator=generator, dtype=weight.dtype, device=weight.device)
        start.append(torch.cat([vectors, more], 1))
    return start


def alternate(
    weight: Tensor, starts: list[Tensor], iterations: int, tolerance: float
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Alternating least squares from several starts at once.

    starts: four factors (S, n, R).  Returns the relative errors ‖W - Ŵ‖ / ‖W‖, (S,), the factors reached, and the
    errors after each pass, (passes, S).

    What tensorly's `parafac` does, mode after mode, which contracts the tensor anew for every term.  Here the outputs'
    and the inputs' mode take one matrix product each, and the kernel's two another one between them.  Each pass is
    extrapolated along its own step, and taken back where that did not help, as in `norton.decomposition.cp_als`.
    """
    channels, (kh, kw), count = weight.shape[1], weight.shape[2:], len(starts[0])
    norm = torch.linalg.vector_norm(weight)
    by_output, by_input = weight.flatten(1), weight.transpose(0, 1).flatten(1)
    best, ahead, history = starts, starts, []
    errors = weight.new_full((count,), torch.inf)
    momentum = weight.new_full((count,), _FIRST_MOMENTUM)
    for _ in range(iterations):
        _, reduce, vertical, horizontal = ahead  # the first is solved for
        kernel = khatri_rao(vertical, horizontal)
        expand = _unit(_solve(by_output @ khatri_rao(reduce, kernel), reduce, vertical, horizontal))
        reduce = _unit(_solve(by_input @ khatri_rao(expand, kernel), expand, vertical, horizontal))
        contracted = (expand.mT @ by_output).view(count, -1, channels, kh * kw)
        contracted = (reduce.mT[:, :, None] @ contracted).view(count, -1, kh, kw)
        across = (contracted * horizontal.mT[:, :, None]).sum(3).mT
        vertical = _unit(_solve(across, expand, reduce, horizontal))
        last = (contracted * vertical.mT[..., None]).sum(2).mT
        horizontal = _solve(last, expand, reduce, vertical)
        found = [expand, reduce, vertical, horizontal]
        squared = norm.square() - 2 * (last * horizontal).sum((1, 2)) + _gram(*found).sum((1, 2))
        now = squared.clamp_min(0).sqrt() / norm
        change, better = errors - now, now < errors
        found = [torch.where(better[:, None, None], new, old) for new, old in zip(found, best, strict=True)]
        step = torch.where(better & errors.isfinite(), momentum, 0)[:, None, None]
        ahead = [new + step * (new - old) for new, old in zip(found, best, strict=True)]
        best, errors = found, torch.minimum(errors, now)
        momentum = torch.where(better, (momentum * _GROWTH).clamp_max(_MAX_MOMENTUM), momentum / 2)
        history.append(errors)
        if (change.abs() < tolerance).all():
            break
    return errors, best, torch.stack(history)


def khatri_rao(a: Tensor, b: Tensor) -> Tensor:
    """(..., m, R), (..., n, R) → (..., m·n, R): the Kronecker products of their columns."""
    return (a[..., :, None, :] * b[..., None, :, :]).flatten(-3, -2)


def _unit(factor: Tensor) -> Tensor:
    """Columns of length one, so that steps of two passes compare; columns of zeros stay."""
    norm = torch.linalg.vector_norm(factor, dim=-2, keepdim=True)
    return factor / norm.where(norm > 0, 1)


def _gram(*factors: Tensor) -> Tensor:
    """(..., R, R) inner products of the terms that these factors span."""
    return torch.stack([factor.mT @ factor for factor in factors]).prod(0)


def _solve(products: Tensor, *others: Tensor) -> Tensor:
    """The best factor for given others.  A tiny ridge: terms may become dependent, and then any solution will do."""
    gram = _gram(*others)
    size = gram.diagonal(dim1=-2, dim2=-1).sqrt()[..., None, :]
    size = size.where(size > 0, 1)  # the ridge is relative to each term's own size
    gram = gram / size / size.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(1e-13 * gram.shape[-1])
    return torch.linalg.solve(gram, (products / size).mT).mT / size
