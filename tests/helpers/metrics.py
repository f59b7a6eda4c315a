"""Random numbers of a seed, and metrics of outputs made of them."""

import torch

from norton.calibration import Metric
from norton.decomposition.factors import Factors, reconstruct


def noise(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def some_metric(size: int, seed: int = 3, ridge: float = 0.01) -> Metric:
    """Far from a multiple of the unit matrix, and with a mean: as activations after a ReLU are."""
    x = (noise(3 * size, size, seed=seed) @ noise(size, size, seed=seed + 1)).relu()
    return Metric([x.T @ x / len(x)]).ridged(ridge)


def errors(factors: Factors, target: torch.Tensor, metric: Metric) -> torch.Tensor:
    rows = (target - reconstruct(factors)).flatten(1)
    return torch.einsum("oi,ij,oj->o", rows, torch.block_diag(*metric.blocks), rows)
