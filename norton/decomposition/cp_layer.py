"""Layer-wise CP: the whole weight a sum of R rank-one terms, run as four convolutions."""

import warnings
from typing import Self

import torch
from torch import Tensor, nn

from norton.decomposition.layers import LayerWise, convolution, tensorly_on_torch, weight_of
from norton.decomposition.methods import DECOMPOSITIONS


@DECOMPOSITIONS.register("cp_layer")
class CPLayerConv2d(LayerWise):
    """A convolution C → O as 1×1 C → R, depthwise kh×1, depthwise 1×kw, 1×1 R → O.

    W[o, c, i, j] ≈ Σ_r E[o, r] A[c, r] B[i, r] D[j, r].  Parameters: R (C + kh + kw + O).  At rank kh·kw·min(C, O)
    each position of the kernel has all terms of its own O × C matrix, so that is exact.

    Source: Lebedev et al., Speeding-up convolutional neural networks using fine-tuned CP-decomposition, ICLR 2015;
    alternating least squares as tensorly has them.
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
        """iterations, tolerance: of tensorly's `parafac`, the latter of the change of the relative error per pass.

        From two starts, tensorly's own by the SVDs of the unfoldings and the largest terms of the exact form; the
        better one is kept.  The four columns of a term get equal norms.
        """
        weight = weight_of(conv, name)
        scale = weight.abs().max()
        if scale == 0:
            return cls.of_weights(conv, rank, [part.zero_() for part in cls.shaped_like(conv, rank).parts()])
        factors = exact_terms(weight / scale, rank)
        if rank < cls.full_rank(conv)[0]:
            factors = _alternate(weight / scale, rank, factors, seed, iterations, tolerance)
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


def _alternate(
    weight: Tensor, rank: int, start: list[Tensor], seed: int, iterations: int, tolerance: float
) -> list[Tensor]:
    """The better of two runs of alternating least squares."""
    with tensorly_on_torch() as tensorly, warnings.catch_warnings():
        from tensorly.decomposition import parafac

        # A start has fewer singular vectors than terms as soon as the rank exceeds 3, say; random ones fill it up.
        warnings.filterwarnings("ignore", "Trying to compute SVD with n_eigenvecs")
        best, least = start, _error(weight, start)
        for init in ("svd", tensorly.cp_tensor.CPTensor((torch.ones(rank).to(weight), start))):
            try:
                found = parafac(
                    weight, rank, n_iter_max=iterations, init=init, tol=tolerance, random_state=seed
                ).factors
            except torch.linalg.LinAlgError:  # terms that have become equal; the other start may do better
                continue
            if (error := _error(weight, found)) < least:
                best, least = found, error
    return list(best)


def _error(weight: Tensor, factors: list[Tensor]) -> float:
    return (weight - torch.einsum("or,cr,ir,jr->ocij", *factors)).square().sum().item()
