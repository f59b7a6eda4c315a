"""How many components of a noisy matrix are signal: empirical variational Bayesian matrix factorisation, analytic.

No library on the package index that is kept up has it, hence this one.  V (L × M, L <= M) is modelled as B Aᵀ plus
noise of variance σ², with Gaussian priors on the columns of A and B whose variances are learnt.  The global minimum of
the free energy is a reweighted SVD: a component stays if its singular value exceeds a threshold that depends on σ, L
and M alone, and σ minimises a function of one variable.

Source: Nakajima, Sugiyama, Babacan & Tomioka, Global analytic solution of fully-observed variational Bayesian matrix
factorization, JMLR 14, 2013; in the closed form of Nakajima, Tomioka, Sugiyama & Babacan, Condition for perfect
dimensionality recovery by variational Bayesian PCA, JMLR 16, 2015.
"""

import math

import torch
from torch import Tensor

from norton.decomposition.layers import energies as squared_singular_values

_GRID, _ROUNDS = 500, 4


def vbmf_rank(matrix: Tensor) -> int:
    """The number of components that empirical VBMF finds in a matrix (m, n); 0 if all is noise.

    The variance of the noise is estimated too.
    """
    singular = squared_singular_values(matrix.detach()).sqrt().cpu()
    short, long = sorted(matrix.shape)
    return int((singular > threshold(short, long) * noise_variance(singular, long) ** 0.5).sum())


def threshold(short: int, long: int) -> float:
    """The singular value above which a component of a matrix is signal, in standard deviations of the noise."""
    return math.sqrt(long * _limit(short / long))


def noise_variance(singular: Tensor, long: int) -> float:
    """The variance of the noise that minimises the free energy; singular: all L singular values of an L × M matrix."""
    alpha = len(singular) / long
    energies = singular.square() / long
    mean = energies.mean().item()
    if mean == 0:
        return 0.0
    limit = _limit(alpha)
    # Not all components can be signal, which bounds the variance from below.
    most = min(math.ceil(len(singular) / (1 + alpha)) - 1, len(singular) - 1)
    low = max(energies[most].item() / limit, energies[most:].mean().item(), mean * 1e-12)
    high = mean
    # The function is smooth between the variances at which a component becomes noise, with a minimum in several of
    # those intervals: hence a grid, refined around its best point.
    for _ in range(_ROUNDS):
        grid = torch.logspace(math.log10(low), math.log10(high), _GRID, dtype=torch.float64)
        best = int(_free_energy(energies, grid, alpha, limit).argmin())
        low, high = grid[max(best - 1, 0)].item(), grid[min(best + 1, _GRID - 1)].item()
    return grid[best].item()


def _limit(alpha: float) -> float:
    """γ²/(M σ²) at which a component is as good as none: (1 + τ)(1 + α/τ) at the root τ of Φ(τ) + Φ(τ/α)."""
    from scipy.optimize import brentq  # a third of a second to import, which most commands need not wait for

    def phi(z: float) -> float:
        return math.log1p(z) / z - 0.5

    root = brentq(lambda t: phi(t) + phi(t / alpha), math.sqrt(alpha), 2.6)  # 2.5129 √α is near, and 2.5129 the most
    return (1 + root) * (1 + alpha / root)


def _free_energy(energies: Tensor, variances: Tensor, alpha: float, limit: float) -> Tensor:
    """The free energy for each variance, up to a constant and a factor."""
    x = energies / variances[:, None]
    energy = x - x.clamp_min(torch.finfo(x.dtype).tiny).log()
    shifted = x.clamp_min(limit) - (1 + alpha)
    tau = (shifted + (shifted.square() - 4 * alpha).clamp_min(0).sqrt()) / 2
    gain = torch.log1p(tau) + alpha * torch.log1p(tau / alpha) - tau
    return (energy + gain.where(x > limit, 0)).sum(1)
