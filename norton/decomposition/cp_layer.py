"""Layer-wise CP: the whole weight a sum of R rank-one terms, run as four convolutions."""

import warnings
from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, convolution, gram_svd, tensorly_on_torch, weight_of
from norton.decomposition.methods import DECOMPOSITIONS


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

        From two starts, tensorly's own by the SVDs of the unfoldings and the largest terms of the exact form; the
        better one is kept.  The four columns of a term get equal norms.
        """
        weight = weight_of(conv, name)
        scale = weight.abs().max()
        if scale == 0:
            return cls.of_weights(conv, rank, [part.zero_() for part in cls.shaped_like(conv, rank).parts()])
        weight, factors = weight / scale, exact_terms(weight / scale, rank)
        if rank < cls.full_rank(conv)[0]:
            starts = [_svd_start(weight, rank, seed), factors]
            _, factors = min((alternate(weight, start, iterations, tolerance) for start in starts), key=lambda x: x[0])
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


def _svd_start(weight: Tensor, rank: int, seed: int) -> list[Tensor]:
    """Leading singular vectors of the unfoldings, filled up with random columns, as tensorly has it."""
    with tensorly_on_torch(), warnings.catch_warnings():
        from tensorly.decomposition._cp import initialize_cp

        # A side of 3 has 3 singular vectors, which is no news.
        warnings.filterwarnings("ignore", "Trying to compute SVD with n_eigenvecs")
        return list(initialize_cp(weight, rank, init="svd", svd=gram_svd, random_state=seed).factors)


def alternate(weight: Tensor, factors: list[Tensor], iterations: int, tolerance: float) -> tuple[float, list[Tensor]]:
    """Alternating least squares from a start: the relative error ‖W - Ŵ‖ / ‖W‖ and the factors.

    What tensorly's `parafac` does, mode after mode, which contracts the tensor anew for every term.  Here the inputs'
    and the outputs' mode take one matrix product each, and the kernel's two another one between them.
    """
    _, channels, kh, kw = weight.shape
    norm = torch.linalg.vector_norm(weight)
    by_output, by_input = weight.flatten(1), weight.transpose(0, 1).flatten(1)
    expand, reduce, vertical, horizontal = factors
    before = float("inf")
    for _ in range(iterations):
        kernel = khatri_rao(vertical, horizontal)
        expand = _solve(by_output @ khatri_rao(reduce, kernel), reduce, vertical, horizontal)
        reduce = _solve(by_input @ khatri_rao(expand, kernel), expand, vertical, horizontal)
        contracted = (expand.T @ by_output).view(-1, channels, kh * kw)
        contracted = torch.einsum("rcp,cr->rp", contracted, reduce).view(-1, kh, kw)
        vertical = _solve(torch.einsum("rij,jr->ir", contracted, horizontal), expand, reduce, horizontal)
        last = torch.einsum("rij,ir->jr", contracted, vertical)
        horizontal = _solve(last, expand, reduce, vertical)
        gram = _gram(expand, reduce, vertical, horizontal)
        squared = norm.square() - 2 * (last * horizontal).sum() + gram.sum()
        error = (squared.clamp_min(0).sqrt() / norm).item()
        if abs(before - error) < tolerance:
            break
        before = error
    return error, [expand, reduce, vertical, horizontal]


def khatri_rao(a: Tensor, b: Tensor) -> Tensor:
    """(m, R), (n, R) → (m·n, R): the Kronecker products of their columns."""
    return (a[:, None] * b).flatten(0, 1)


def _gram(*factors: Tensor) -> Tensor:
    """(R, R) inner products of the terms that these factors span."""
    return torch.stack([factor.T @ factor for factor in factors]).prod(0)


def _solve(products: Tensor, *others: Tensor) -> Tensor:
    """The best factor for given others.  A tiny ridge: terms may become dependent, and then any solution will do."""
    gram = _gram(*others)
    gram.diagonal().add_(1e-13 * gram.trace())
    return torch.linalg.solve(gram, products.T).T
