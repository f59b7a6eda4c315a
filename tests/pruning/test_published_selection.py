"""The published selection, mistakes included, against a literal loop; and that the exact one does not make them."""

import math

import numpy as np
import pytest
import torch

import norton
from norton.decomposition.factors import Factors
from norton.pruning import scores
from norton.pruning.published import published_order, published_scores, wrapped_angles

pytestmark = pytest.mark.quick


def factors(filters, rank, side=3, seed=0):
    """Random factors of 16 channels and a square kernel.

    Where the rank reaches the side, all subspaces are the whole space: what is left of an angle is rounding alone,
    which differs between processors, and so do closest pairs.
    """
    draw = torch.Generator().manual_seed(seed)
    return Factors(*(torch.randn(n, rank, filters, generator=draw, dtype=torch.float64) for n in (16, side, side)))


def literal_angle(a, b):
    """arcsin of the Frobenius norm of the part of b's basis outside of a's span, at most 1, modulo pi/2."""
    a, b = np.linalg.qr(a)[0], np.linalg.qr(b)[0]
    residual = b - a @ (a.T @ b)
    return math.remainder(math.asin(min(1.0, np.linalg.norm(residual))), math.pi / 2) % (math.pi / 2)


def literal_scores(matrix):
    """Step i removes one of the closest pair; entry i of the "scores" is the filter that was removed."""
    n, matrix = len(matrix), matrix.copy()
    saliency = [n - 1] * n
    np.fill_diagonal(matrix, np.inf)
    for step in range(n - 1):
        rows = [i for i in range(n) for j in range(n) if matrix[i, j] == matrix.min()]
        row, column = rows[0], rows[1]
        row_sum = sum(d for d in matrix[row] if d != np.inf)
        column_sum = sum(d for d in matrix[:, column] if d != np.inf)
        saliency[step] = row if row_sum < column_sum else column
        matrix[saliency[step], :] = matrix[:, saliency[step]] = np.inf
    return saliency


@pytest.mark.parametrize("rank, side", [(1, 3), (2, 3), (3, 3), (5, 3), (3, 5), (4, 5)])
def test_wrapped_angles(rank, side):
    for factor in factors(7, rank, side):
        found = wrapped_angles(factor).numpy()
        for i in range(7):
            for j in range(i + 1, 7):
                expected = literal_angle(factor[:, :, i].numpy(), factor[:, :, j].numpy())
                assert found[i, j] == found[j, i] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("criterion", ["pabs", "csa", "vbd"])
@pytest.mark.parametrize("rank, side, count", [(1, 3, 12), (2, 3, 12), (4, 5, 12), (3, 5, 40)])
def test_published_scores(criterion, rank, side, count):
    filters = factors(count, rank, side)
    if criterion == "vbd":
        matrix = norton.pruning.CRITERIA["vbd"](filters)
    else:
        angles = [wrapped_angles(factor) for factor in filters]
        matrix = sum(angle if criterion == "pabs" else angle.sin() ** 2 for angle in angles)
    matrix = matrix.triu(1) + matrix.triu(1).T
    assert published_scores(filters, criterion).tolist() == literal_scores(matrix.numpy())


def test_ties_are_broken_as_published():
    draw = np.random.default_rng(0)
    for _ in range(20):
        matrix = draw.integers(0, 3, (9, 9)).astype(float)
        matrix = np.triu(matrix, 1) + np.triu(matrix, 1).T
        assert published_order(matrix) == literal_scores(matrix)[:-1]


def test_unrelated_subspaces_pass_for_identical():
    """The mistake itself: orthogonal planes are at pi/2, published as 0."""
    plane = torch.zeros(8, 2, 2, dtype=torch.float64)
    plane[0, 0, 0] = plane[1, 1, 0] = plane[2, 0, 1] = plane[3, 1, 1] = 1
    assert wrapped_angles(plane)[0, 1] == 0
    line = plane[:, :1]
    assert norton.pruning.CRITERIA["pabs"](Factors(line, line, line))[0, 1] == pytest.approx(3 * math.pi / 2)


@pytest.mark.parametrize("rank, side", [(2, 3), (4, 12)])
def test_planted_duplicates_survive_published_selection_only(rank, side):
    """Keeping n of 2n must keep one of each pair: exact does, published does not.

    At rank 4 any two filters but duplicates are at exactly zero by the published angle, which then removes filters in
    their order: both of the first pairs, as duplicates are neighbours here.
    """
    n = 10
    originals = factors(n, rank, side)
    noise = factors(n, rank, side, seed=1)
    pairs = Factors(*(torch.stack([f, f + 1e-3 * e], dim=3).flatten(2) for f, e in zip(originals, noise, strict=True)))
    apart = torch.block_diag(*[torch.ones(2, 2)] * n) == 0
    for factor in pairs if rank == 4 else ():
        assert not wrapped_angles(factor)[apart].any()
    for selection, complete in ((scores, True), (published_scores, False)):
        kept = torch.argsort(selection(pairs, "pabs"), stable=True)[n:]
        assert (len(set((kept // 2).tolist())) == n) == complete


def test_selection_is_a_choice_of_prune():
    net = norton.decompose(norton.build("resnet_56"), 2, starts=1, iterations=2)
    rates = "[0.]+[0.4]*29"
    plans = {
        s: norton.prune(net, rates, options=norton.PruneOptions(selection=s)).plan[-1]["keep"]
        for s in ("exact", "published")
    }
    assert plans["exact"] == norton.prune(net, rates).plan[-1]["keep"]
    assert plans["exact"] != plans["published"]
    assert {k: len(v) for k, v in plans["exact"].items()} == {k: len(v) for k, v in plans["published"].items()}
    with pytest.raises(norton.InputError, match=r"unknown selection 'nix'; choose one of exact, published"):
        norton.prune(net, rates, options=norton.PruneOptions(selection="nix"))
