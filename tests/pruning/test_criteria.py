import pytest
import torch

import norton.pruning  # noqa: F401  (registers the criteria)
from norton.errors import InputError
from norton.factors import Factors, reconstruct
from norton.pruning.criteria import CRITERIA, is_distance, keep_filters, scores

DISTANCES = sorted(name for name in CRITERIA if is_distance(name))
RANKS = [1, 2, 4, 8]


def random_factors(rank, filters, channels=32, seed=0):
    """float32 factors with terms of clearly different sizes, so that noise does not reorder them."""
    generator = torch.Generator().manual_seed(seed)
    factors = Factors(*(torch.randn(n, rank, filters, generator=generator) for n in (channels, 3, 3)))
    sizes = 0.7 ** torch.arange(rank)
    return Factors(*(factor / factor.norm(dim=0) * sizes[:, None] ** (1 / 3) for factor in factors))


def select(factors, filters):
    return Factors(*(factor[:, :, filters] for factor in factors))


def planted(rank, pairs, seed=0):
    """Factors of `pairs` random filters and a near-duplicate of each, shuffled, and (2·pairs,) which pair each is of.

    The copies carry noise of 1e-3 and other scales, signs and term order, which CP leaves free.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    originals = random_factors(rank, pairs, seed=seed)
    shape = (rank, pairs)
    first, second = torch.randn(2, *shape, generator=generator).mul(0.5).exp()
    first *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
    second *= torch.randint(0, 2, shape, generator=generator) * 2 - 1
    filter_scale = torch.rand(pairs, generator=generator) + 0.5
    order = torch.rand(shape, generator=generator).argsort(0)
    copies = []
    for factor, scale in zip(originals, (first * filter_scale, second, 1 / (first * second)), strict=True):
        noise = torch.randn(factor.shape, generator=generator) * factor.norm(dim=0) / factor.shape[0] ** 0.5
        copies.append(((factor + 1e-3 * noise) * scale).gather(1, order.expand(factor.shape)))
    shuffle = torch.randperm(2 * pairs, generator=generator)
    both = Factors(*(torch.cat(pair, dim=2) for pair in zip(originals, copies, strict=True)))
    return select(both, shuffle), shuffle % pairs


@pytest.mark.parametrize("name", DISTANCES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_of_each_planted_pair_is_kept(name, rank, seed):
    factors, pair = planted(rank, 20, seed)
    kept = keep_filters(factors, 20, name)
    assert sorted(pair[kept].tolist()) == list(range(20))
    # The same through the scores: an order of removal taken for the score fails here.
    best = scores(factors, name).argsort(descending=True)[:20]
    assert sorted(best.tolist()) == kept.tolist()


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("rank", RANKS)
def test_relabelling_filters_relabels_the_kept(name, rank):
    factors = random_factors(rank, 40)
    factors = Factors(factors.head * torch.linspace(1, 2, 40), factors.body, factors.tail)
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    for keep in (2, 13, 20, 39):  # of the last two filters neither is nearer to the others: the lower index goes
        expected = sorted(keep_filters(factors, keep, name).tolist())
        assert sorted(shuffle[keep_filters(select(factors, shuffle), keep, name)].tolist()) == expected


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("rank", RANKS)
def test_kept_sets_are_nested_and_follow_the_scores(name, rank):
    factors = random_factors(rank, 16, channels=8)
    score = scores(factors, name)
    assert score.shape == (16,) and score.is_floating_point()
    smaller = set()
    for keep in range(1, 17):
        kept = keep_filters(factors, keep, name)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(set(kept.tolist())) and len(kept) == keep
        assert smaller <= set(kept.tolist())
        smaller = set(kept.tolist())
        removed = [o for o in range(16) if o not in smaller]
        assert not removed or score[removed].max() <= score[kept].min()


@pytest.mark.parametrize("name", DISTANCES)
def test_scores_of_a_distance_are_steps_of_removal(name):
    assert sorted(scores(random_factors(2, 9), name).tolist()) == list(range(9))


@pytest.mark.parametrize("name", ["l2", *DISTANCES])
@pytest.mark.parametrize("rank", RANKS)
def test_zero_filters_go_first(name, rank):
    factors = random_factors(rank, 10)
    factors.head[:, :, 6] = 0
    factors.body[:, :, 3] = 0
    factors.tail[:, :, 8] = 0
    assert scores(factors, name).argsort(stable=True)[:3].tolist() == [3, 6, 8]
    assert not {3, 6, 8} & set(keep_filters(factors, 7, name).tolist())
    assert keep_filters(factors, 9, name).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", ["l2", *DISTANCES])
def test_filters_all_zero_go_in_their_order(name):
    factors = Factors(torch.zeros(4, 2, 5), torch.zeros(3, 2, 5), torch.zeros(3, 2, 5))
    assert keep_filters(factors, 2, name).tolist() == [3, 4]


@pytest.mark.parametrize("rank", RANKS)
def test_l2_is_the_norm_of_the_filter(rank):
    factors = random_factors(rank, 12)
    expected = reconstruct(factors).flatten(1).norm(dim=1).double()
    torch.testing.assert_close(scores(factors, "l2"), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(scores(reconstruct(factors), "l2"), expected, rtol=1e-5, atol=0)


def test_l2_of_dense_weights():
    weight = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [1.0, 0.0]])
    assert scores(weight, "l2").tolist() == [5, 1, 2, 1]
    assert keep_filters(weight[:, :, None, None], 3, "l2").tolist() == [0, 2, 3]


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_input_is_untouched(name):
    factors = random_factors(2, 8)
    factors.head.requires_grad_()
    before = Factors(*(factor.detach().clone() for factor in factors))
    assert not scores(factors, name).requires_grad
    assert all(map(torch.equal, factors, before))


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("keep", [0, -1, 9, 4.0, "4", True, None])
def test_bad_number_kept(name, keep):
    with pytest.raises(InputError, match="keep"):
        keep_filters(random_factors(1, 8), keep, name)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_of_a_dense_weight_says_what_to_do(name):
    with pytest.raises(InputError, match=r"decompose it first or use l2"):
        keep_filters(torch.randn(8, 4, 3, 3), 4, name)


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(name, value):
    factors = random_factors(2, 8)
    factors.body[0, 1, 3] = value
    with pytest.raises(InputError, match="body holds NaN or infinity"):
        scores(factors, name)


def test_factors_that_do_not_fit():
    head, body, tail = random_factors(2, 8)
    with pytest.raises(InputError, match=r"head .*16|body .*8"):
        keep_filters(Factors(head, body[:, :, :7], tail), 4)


def test_unknown_criterion_names_the_known():
    with pytest.raises(InputError, match=r"unknown criterion 'pab'.*pabs"):
        keep_filters(random_factors(1, 8), 4, "pab")
