import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles

import norton.pruning  # noqa: F401  (registers the criteria)
from norton.decomposition.factors import Factors
from norton.pruning.criteria.csa import csa
from norton.pruning.criteria.kinds import CRITERIA, DistanceCriterion
from norton.pruning.criteria.pabs import pabs
from norton.pruning.criteria.vbd import vbd
from norton.pruning.subspaces import BLOCK, smallest_eigenvalues_

DISTANCES = sorted(name for name in CRITERIA if isinstance(CRITERIA[name], DistanceCriterion))
RANKS = [1, 2, 3, 4, 8]
SHAPES = [(3, 3, 3), (16, 5, 5), (64, 1, 3)]


def random_factors(channels, kh, kw, rank, filters, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    sizes = (channels, kh, kw)
    return Factors(*(torch.randn(n, rank, filters, generator=generator, dtype=torch.float64).to(dtype) for n in sizes))


def literal(factors, of_angle):
    """Double loop over the filters; the column spaces by SVD, the angles by scipy."""
    filters = factors.head.shape[2]
    out = np.zeros((filters, filters))
    for i, j in itertools.permutations(range(filters), 2):
        for factor in factors:
            a, b = (_span(factor[:, :, o].double().numpy()) for o in (i, j))
            if a.shape[1] and b.shape[1]:
                out[i, j] += of_angle(subspace_angles(a, b).max())
    return torch.from_numpy(out)


def _span(matrix):
    norms = np.linalg.norm(matrix, axis=0)
    u, values, _ = np.linalg.svd(matrix[:, norms > 0] / norms[norms > 0], full_matrices=False)
    return u[:, values > 1e-6]


def literal_vbd(factors):
    """Double loop, columns one by one, each tried with both signs."""
    head = factors.head.numpy()
    sizes = math.prod(np.linalg.norm(factor.numpy(), axis=0) for factor in factors)
    filters = head.shape[2]
    out = np.zeros((filters, filters))
    for i, j in itertools.permutations(range(filters), 2):
        x, y = (head[:, np.argsort(-sizes[:, o]), o] for o in (i, j))
        x, y = x / np.linalg.norm(x, axis=0), y / np.linalg.norm(y, axis=0)
        difference = sum(min(np.var(a - b), np.var(a + b)) for a, b in zip(x.T, y.T, strict=True))
        out[i, j] = difference / (x.var(0).sum() + y.var(0).sum())
    return torch.from_numpy(out)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_angles_are_the_literal_ones(shape, rank):
    factors = random_factors(*shape, rank, 10)
    torch.testing.assert_close(pabs(factors), literal(factors, lambda angle: angle), rtol=0, atol=1e-8)
    torch.testing.assert_close(csa(factors), literal(factors, lambda angle: math.sin(angle) ** 2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_vbd_is_the_literal_one(shape, rank):
    factors = random_factors(*shape, rank, 10)
    torch.testing.assert_close(vbd(factors), literal_vbd(factors), rtol=0, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_angles_do_not_depend_on_the_blocks(rank, monkeypatch):
    factors = random_factors(16, 5, 5, rank, 30)
    expected = pabs(factors)
    for size in (1, 30 * 16 * 7):
        monkeypatch.setitem(BLOCK, "cpu", size)
        torch.testing.assert_close(pabs(factors), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 3)])
def test_matrix_is_a_finite_symmetric_distance(name, rank, shape):
    distances = CRITERIA[name](random_factors(*shape, rank, 12, dtype=torch.float32))
    assert distances.shape == (12, 12)
    assert torch.isfinite(distances).all() and (distances >= 0).all()
    assert torch.equal(distances, distances.T) and not distances.diagonal().any()


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("rank", RANKS)
def test_ambiguities_of_cp_change_nothing(name, rank):
    factors = random_factors(16, 5, 5, rank, 12)
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(rank, 12, generator=generator).argsort(0)
    scale = torch.randn(2, rank, 12, generator=generator, dtype=torch.float64).exp()
    signs = torch.randint(0, 2, (2, rank, 12), generator=generator) * 2.0 - 1
    first, second = scale * signs
    factors_same = Factors(factors.head * first, factors.body * second, factors.tail / (first * second))
    factors_same = Factors(*(factor.gather(1, order.expand(factor.shape)) for factor in factors_same))
    torch.testing.assert_close(CRITERIA[name](factors_same), CRITERIA[name](factors), rtol=0, atol=1e-7)


@pytest.mark.parametrize("angle", [1e-6, 1e-5, 1e-4, 1e-3, 0.1, 1.0, math.pi / 2 - 1e-4, math.pi / 2])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_planted_angle_is_found(angle, rank, dtype):
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(40, rank + 1, generator=generator, dtype=torch.float64)).Q
    turned = axes[:, :rank].clone()
    turned[:, 0] = math.cos(angle) * axes[:, 0] + math.sin(angle) * axes[:, rank]
    head = torch.stack([axes[:, :rank], turned], dim=2).to(dtype)
    spatial = torch.ones(1, rank, 2, dtype=dtype)
    found = pabs(Factors(head, spatial, spatial))[0, 1].item()
    # float32 rounds the factors themselves by 6e-8 per entry.
    assert found == pytest.approx(angle, abs=1e-6 if dtype == torch.float32 else 3e-8, rel=0)


@pytest.mark.parametrize("rank", RANKS)
def test_equal_subspaces_are_at_zero(rank):
    factors = random_factors(64, 7, 7, rank, 3)
    mix = torch.randn(rank, rank, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for factor in factors:
        factor[:, :, 2] = factor[:, :, 0] @ mix
    distances = pabs(factors)
    assert distances[0, 2] < 1e-12 and distances[0, 1] > 1


@pytest.mark.parametrize("rank", RANKS)
def test_unrelated_subspaces_are_far_apart(rank):
    """The head's angle alone is near pi/2 in 512 dimensions, and the more so the larger the rank.

    The bound fails an angle that wraps (taken modulo pi/2, or of an unsorted cosine), one that is the smallest instead
    of the largest, and a distance that saturates below it.
    """
    factors = random_factors(512, 3, 3, rank, 20)
    pairs = torch.triu_indices(20, 20, 1).unbind()
    assert pabs(factors)[pairs].min() > 1.4
    assert csa(factors)[pairs].min() > 0.95
    assert vbd(factors)[pairs].min() > 0.7


@pytest.mark.parametrize("name", ["pabs", "csa"])
@pytest.mark.parametrize("rank", [3, 4, 8])
def test_full_spatial_modes_add_exactly_nothing(name, rank):
    factors = random_factors(64, 3, 3, rank, 12)
    same = torch.ones(1, rank, 12, dtype=torch.float64)
    assert torch.equal(CRITERIA[name](factors), CRITERIA[name](Factors(factors.head, same, same)))
    assert not CRITERIA[name](random_factors(3, 3, 3, rank, 12)).any()


@pytest.mark.parametrize("rank", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(16, 5, 5), (64, 3, 3), (12, 7, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deficient_factors_span_what_their_columns_span(rank, shape, dtype):
    factors = random_factors(*shape, rank, 14, dtype=dtype)
    for factor in factors:
        factor[:, 0, 1] = 0
        factor[:, -1, 2] = -2 * factor[:, 0, 2]
        factor[:, 1:, 3] = 0
        factor[:, :, 4] = factor[:, :1, 4] * torch.arange(1, rank + 1)
        factor[:, -1, 5] = factor[:, 0, 5] + 1e-3 * factor[:, 1, 5]  # nearly dependent, if the rank allows
        factor[:, :, 6] = factor[:, :, 2]
    factors.body[:, :, 7] = 0
    expected = literal(factors, lambda angle: angle)
    torch.testing.assert_close(pabs(factors), expected, rtol=0, atol=1e-3 if dtype == torch.float32 else 1e-7)


def test_zero_filters_and_zero_variance_give_no_nan():
    factors = random_factors(1, 3, 3, 2, 5)
    for factor in factors:
        factor[:, :, 3] = 0
    for name in DISTANCES:
        assert torch.isfinite(CRITERIA[name](factors)).all()
    assert not vbd(factors).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_low_precision_is_computed_in_double(name, dtype, rank):
    factors = random_factors(64, 3, 3, rank, 10, dtype=dtype)
    expected = CRITERIA[name](Factors(*(factor.double() for factor in factors)))
    torch.testing.assert_close(CRITERIA[name](factors), expected, rtol=0, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("rank", RANKS)
def test_cuda_gives_the_distances_of_the_cpu(name, rank):
    factors = random_factors(64, 5, 3, rank, 40)
    on_gpu = CRITERIA[name](Factors(*(factor.cuda() for factor in factors)))
    torch.testing.assert_close(on_gpu.cpu(), CRITERIA[name](factors), rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", range(2, 10))
def test_smallest_eigenvalues(size):
    generator = torch.Generator().manual_seed(size)
    roots = torch.linalg.qr(torch.randn(6, 50, size, size, generator=generator, dtype=torch.float64)).Q
    spectrum = torch.rand(6, 50, size, generator=generator, dtype=torch.float64)
    spectrum[1] = 1
    spectrum[2] = 0
    spectrum[3] **= 12
    spectrum[4, :, 0] = 0
    spectrum[5] = (1 - 1e-9 * spectrum[5]).round(decimals=9)
    matrices = roots * spectrum[..., None, :] @ roots.mT
    matrices[2, 25:] = 1e-300
    found = smallest_eigenvalues_(matrices.permute(2, 3, 0, 1).contiguous())
    # The clusters of nearly equal eigenvalues in spectrum[5] leave the iteration's stop test visible.
    torch.testing.assert_close(found, torch.linalg.eigvalsh(matrices)[..., 0], rtol=0, atol=1e-11)
