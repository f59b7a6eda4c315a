"""The contract that every criterion of the registry keeps; a new file in norton/pruning/ is tested without any edit."""

import copy

import pytest
import torch

import norton
import norton.pruning
from norton.common.errors import InputError
from norton.decomposition.factors import Factors, reconstruct
from norton.pruning.criteria.kinds import (
    CRITERIA,
    DistanceCriterion,
    FilterCriterion,
    GradientCriterion,
    LayerContext,
    LayerCriterion,
    MapCriterion,
    NormCriterion,
    keep_filters,
    scores,
)

DISTANCES = sorted(name for name in CRITERIA if type(CRITERIA[name]) is DistanceCriterion)
PLACES = sorted(name for name in CRITERIA if type(CRITERIA[name]) is LayerCriterion)
OTHERS = sorted(set(CRITERIA) - set(DISTANCES) - set(PLACES))
RANKS = [1, 2, 4, 8]
FORMS = ["dense", *RANKS]  # dense filters, and decomposed ones of these ranks
BY_KIND = {DistanceCriterion: RANKS, FilterCriterion: FORMS, LayerCriterion: FORMS}
CASES = [(name, form) for name in sorted(CRITERIA) for form in BY_KIND.get(type(CRITERIA[name]), ["maps"])]


def random_factors(rank, filters, channels=32, seed=0):
    """float32 factors with terms of clearly different sizes, so that noise does not reorder them."""
    generator = torch.Generator().manual_seed(seed)
    factors = Factors(*(torch.randn(n, rank, filters, generator=generator) for n in (channels, 3, 3)))
    sizes = 0.7 ** torch.arange(rank)
    return Factors(*(factor / factor.norm(dim=0) * sizes[:, None] ** (1 / 3) for factor in factors))


def example(name, form, filters, channels=32, seed=0):
    """What a criterion looks at, of `filters` random filters with clearly different sizes."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(1, 2, filters)
    kind = type(CRITERIA[name])
    if kind in (MapCriterion, GradientCriterion):
        maps, gradients = torch.randn(2, 5, filters, 6, 7, generator=generator) * sizes[:, None, None]
        return (maps, gradients) if kind is GradientCriterion else maps
    if kind is NormCriterion:
        return torch.randn(3, filters, generator=generator) * sizes
    if form == "dense":
        weight = torch.randn(filters, channels, 3, 3, generator=generator) * sizes[:, None, None, None]
    else:
        weight = random_factors(form, filters, channels, seed)
        weight = Factors(weight.head * sizes, weight.body, weight.tail)
    return LayerContext("layer1.0.conv1", weight, seed, (2, 5)) if kind is LayerCriterion else weight


def select(subject, filters):
    """The same of some filters, in another order."""
    if isinstance(subject, Factors):
        return Factors(*(factor[:, :, filters] for factor in subject))
    if isinstance(subject, tuple):
        return tuple(maps[:, filters] for maps in subject)
    return subject[:, filters] if subject.shape[0] in (3, 5) else subject[filters]


def tensors_of(subject):
    if isinstance(subject, LayerContext):
        return tensors_of(subject.filters)
    return list(subject) if isinstance(subject, tuple) else [subject]


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


@pytest.mark.parametrize("name, form", [case for case in CASES if case[0] not in PLACES])
def test_relabelling_filters_relabels_the_kept(name, form):
    subject = example(name, form, 40)
    shuffle = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    relabelled = select(subject, shuffle)
    if name not in DISTANCES:
        torch.testing.assert_close(scores(relabelled, name), scores(subject, name)[shuffle], rtol=1e-9, atol=1e-12)
        if len(scores(subject, name).unique()) < 40:  # of equal scores the lower index goes
            return
    for keep in (2, 13, 20, 39):  # of the last two filters neither is nearer to the others: the lower index goes
        expected = sorted(keep_filters(subject, keep, name).tolist())
        assert sorted(shuffle[keep_filters(relabelled, keep, name)].tolist()) == expected


@pytest.mark.parametrize("name, form", CASES)
def test_kept_sets_are_nested_and_follow_the_scores(name, form):
    subject = example(name, form, 16, channels=8)
    score = scores(subject, name)
    assert score.shape == (16,) and score.dtype == torch.float64
    smaller = set()
    for keep in range(1, 17):
        kept = keep_filters(subject, keep, name)
        assert kept.dtype == torch.int64 and kept.tolist() == sorted(set(kept.tolist())) and len(kept) == keep
        assert smaller <= set(kept.tolist())
        smaller = set(kept.tolist())
        removed = [o for o in range(16) if o not in smaller]
        assert not removed or score[removed].max() <= score[kept].min()


@pytest.mark.parametrize("name, form", CASES)
def test_scores_tell_filters_apart_and_repeat(name, form):
    subject = example(name, form, 16)
    score = scores(subject, name)
    assert len(score.unique()) > 1
    assert torch.equal(score, scores(copy.deepcopy(subject), name))


@pytest.mark.parametrize("name", [name for name in OTHERS if type(CRITERIA[name]) is FilterCriterion])
@pytest.mark.parametrize("rank", RANKS)
def test_decomposed_filters_score_as_the_filters_they_stand_for(name, rank):
    factors = example(name, rank, 20)
    torch.testing.assert_close(scores(factors, name), scores(reconstruct(factors), name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", DISTANCES)
def test_scores_of_a_distance_are_steps_of_removal(name):
    assert sorted(scores(random_factors(2, 9), name).tolist()) == list(range(9))


@pytest.mark.parametrize("name, form", [case for case in CASES if case[0] not in PLACES])
def test_zero_filters_go_first(name, form):
    subject = example(name, form, 10)
    if isinstance(subject, Factors):
        subject.head[:, :, 6] = 0
        subject.body[:, :, 3] = 0
        subject.tail[:, :, 8] = 0
    else:
        for tensor in tensors_of(subject)[:1]:
            (tensor if form == "dense" else tensor.transpose(0, 1))[[3, 6, 8]] = 0
    assert scores(subject, name).argsort(stable=True)[:3].tolist() == [3, 6, 8]
    assert not {3, 6, 8} & set(keep_filters(subject, 7, name).tolist())
    if name in DISTANCES:
        assert keep_filters(subject, 9, name).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name, form", [case for case in CASES if case[0] not in PLACES])
def test_filters_all_zero_go_in_their_order(name, form):
    subject = example(name, form, 5)
    for tensor in tensors_of(subject):
        tensor.zero_()
    assert keep_filters(subject, 2, name).tolist() == [3, 4]


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


@pytest.mark.parametrize("name, form", CASES)
def test_input_is_untouched(name, form):
    subject = example(name, form, 8)
    before = copy.deepcopy(tensors_of(subject))
    for tensor in tensors_of(subject):
        tensor.requires_grad_()
    assert not scores(subject, name).requires_grad
    keep_filters(subject, 4, name)
    assert all(map(torch.equal, tensors_of(subject), before))


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("keep", [0, -1, 9, 4.0, "4", True, None])
def test_bad_number_kept(name, keep):
    with pytest.raises(InputError, match="keep"):
        keep_filters(example(name, 1, 8), keep, name)


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_of_a_dense_weight_says_what_to_do(name):
    with pytest.raises(InputError, match=r"decompose it first or use l2"):
        keep_filters(torch.randn(8, 4, 3, 3), 4, name)


@pytest.mark.parametrize("name, form", CASES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(name, form, value):
    subject = example(name, form, 8)
    for number, tensor in enumerate(tensors_of(subject)):
        before = tensor.view(-1)[1].item()
        tensor.view(-1)[1] = value
        names = {GradientCriterion: ["maps", "gradients"], MapCriterion: ["maps"], NormCriterion: ["scales"]}
        known = names.get(type(CRITERIA[name]), ["weight"] if form == "dense" else ["head", "body", "tail"])
        with pytest.raises(InputError, match=f"{known[number]} holds NaN or infinity"):
            scores(subject, name)
        tensor.view(-1)[1] = before
    scores(subject, name)


def test_factors_that_do_not_fit():
    head, body, tail = random_factors(2, 8)
    with pytest.raises(InputError, match=r"head .*16|body .*8"):
        keep_filters(Factors(head, body[:, :, :7], tail), 4)


def test_unknown_criterion_names_the_known():
    with pytest.raises(InputError, match=r"unknown criterion 'pab'.*pabs"):
        keep_filters(random_factors(1, 8), 4, "pab")


@pytest.mark.parametrize("kind, wrong, message", [
    (FilterCriterion, lambda filters: filters.flatten(1), r"returns shape \(16, 144\); expected \(16,\)"),
    (FilterCriterion, lambda filters: 3.0, "returns a float"),
    (DistanceCriterion, lambda factors: factors.head[0], r"returns shape \(2, 16\); expected \(16, 16\)"),
    (MapCriterion, lambda maps: maps.mean(0), r"returns shape \(16, 32, 32\); expected \(2, 16\)"),
    (GradientCriterion, lambda maps, gradients: maps.mean(), r"returns shape \(\); expected \(2, 16\)"),
    (NormCriterion, lambda scales: torch.cat([scales, scales]), r"returns shape \(\d+, 16\); expected \(16,\)"),
    (LayerCriterion, lambda context: torch.zeros(3), r"returns shape \(3,\); expected \(16,\)"),
])  # fmt: skip
def test_a_criterion_of_the_wrong_shape(kind, wrong, message, monkeypatch):
    monkeypatch.setitem(CRITERIA._methods, "mine", kind("mine", wrong))
    net = norton.build("resnet_56", 2 if kind is DistanceCriterion else 0)
    data = {"images": torch.randn(2, 3, 32, 32), "labels": torch.arange(2)}
    with pytest.raises(norton.InputError, match=f"layer1.0.conv1: criterion 'mine' {message}"):
        norton.prune(net, {"layer1.0.conv1": 0.5}, "mine", **data)
