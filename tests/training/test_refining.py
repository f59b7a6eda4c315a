"""Refinement: a compressed network comes nearer to the dense one, never farther, and nothing else of it changes."""

import itertools
import math
from unittest import mock

import pytest
import torch
from torch import nn

import norton
from norton.common.errors import NortonWarning
from norton.training import descent
from norton.training.answers import Answers
from norton.training.descent import Descent, Refining
from norton.training.mixing import Mixing
from norton.training.refining import STATE, refined, split

STEPS = {"minutes": None, "batch_size": 8}


def network(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(dropout)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)),
    )
    net(torch.randn(32, 3, 10, 10))  # statistics of BatchNorm
    net[-1].weight.data.mul_(8)  # answers that differ from image to image
    return net.eval()


def some(count=40, seed=1):
    return torch.randn(count, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dense():
    return network()


@pytest.fixture(scope="module")
def small(dense):
    return norton.decompose(dense, rank=1)


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(one, other):
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def softmax(logits, temperature):
    powers = [math.exp((x - max(logits)) / temperature) for x in logits]
    return [power / sum(powers) for power in powers]


@torch.no_grad()
def divergence(net, dense, images, temperature=4.0):
    """Image by image and class by class: T² Σ p log(p / q), the mean over images."""
    total = 0.0
    for image in images:
        p, q = (softmax(one(image[None])[0].tolist(), temperature) for one in (dense, net))
        total += temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(images)


# What it is for


def test_a_network_comes_nearer_on_images_that_nobody_showed_it(dense, small):
    fresh = some(30, seed=7)
    found = norton.refine(small, dense, some(), steps=150, **STEPS)
    assert divergence(found, dense, fresh) < 0.7 * divergence(small, dense, fresh)


def test_what_is_reported_is_the_distance_of_what_is_returned(dense, small):
    fresh = some(30, seed=7)
    result = refined(small, dense, some(), Refining(steps=40, **STEPS), held_out=fresh)
    assert result.before == pytest.approx(divergence(small, dense, fresh), rel=1e-4)
    assert result.after == pytest.approx(divergence(result.net, dense, fresh), rel=1e-4)
    assert result.after < result.before and result.images == 30 and "in 40 steps" in str(result)


@pytest.mark.parametrize("rate", [1e6, 1e30])
def test_it_never_goes_farther(dense, small, rate):
    with mock.patch.object(descent, "warn") as said:
        result = refined(small, dense, some(), Refining(steps=20, learning_rate=rate, **STEPS))
    assert result.after == result.before and same(state(small), state(result.net))
    assert said.called or rate < 1e20  # the loss is not finite


def test_the_same_network_stays(dense):
    result = refined(dense, dense, some(), Refining(steps=20, **STEPS))
    assert result.before == result.after == 0 and same(state(dense), state(result.net))


# What stays


def test_nothing_but_parameters_moves(dense, small):
    before = state(small), state(dense)
    found = norton.refine(small, dense, some(), steps=10, **STEPS)
    assert same(before[0], state(small)) and same(before[1], state(dense))
    moved = {name for name, tensor in state(found).items() if not torch.equal(tensor, before[0][name])}
    assert moved == {name for name, _ in small.named_parameters()}
    assert [layer.training for layer in found.modules()] == [layer.training for layer in small.modules()]
    assert [getattr(layer, "form", None) for layer in found.modules()] == [
        getattr(layer, "form", None) for layer in small.modules()
    ]


def test_frozen_and_skipped_layers_stay(dense):
    small = norton.decompose(dense, rank=1)
    small[0].requires_grad_(False)
    found = norton.refine(small, dense, some(), steps=10, skip=["3", "9"], **STEPS)
    moved = {name for name, tensor in state(found).items() if not torch.equal(tensor, state(small)[name])}
    assert moved == {"1.weight", "1.bias", "4.weight", "4.bias"}


def test_where_nothing_may_move_nothing_does(dense, small):
    result = refined(small, dense, some(), Refining(steps=10, **STEPS), skip=["*"])
    assert result.steps == 0 and same(state(small), state(result.net))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_stays(dtype):
    dense = network().to(dtype)
    small = norton.decompose(dense, rank=1)
    result = refined(small, dense, some().to(dtype), Refining(steps=60, **STEPS))
    assert {p.dtype for p in result.net.parameters()} == {dtype}
    assert result.after < 0.9 * result.before


def test_dropout_draws_nothing():
    dense = network(dropout=0.5)
    small = norton.decompose(dense, rank=1)
    with mock.patch("torch.nn.functional.dropout", side_effect=lambda x, *_: x) as dropout:
        result = refined(small.train(), dense.train(), some(), Refining(steps=5, **STEPS))
    assert dropout.called and not any(call.args[2] for call in dropout.call_args_list)
    assert result.net.training and dense.training and small.training


# Limits


def test_it_repeats_with_steps(dense, small):
    one, other = (norton.refine(small, dense, some(), steps=12, **STEPS) for _ in range(2))
    assert same(state(one), state(other))
    assert not same(state(one), state(norton.refine(small, dense, some(), steps=12, seed=1, **STEPS)))


def test_it_stops_in_time(dense, small, monkeypatch):
    seconds = itertools.count()  # a clock of which each reading is a second later
    monkeypatch.setattr(descent.time, "monotonic", lambda: float(next(seconds)))
    result = refined(small, dense, some(), Refining(minutes=2, batch_size=8))
    assert 10 <= result.steps <= 60 and next(seconds) < 140


@pytest.mark.parametrize("at", [1, 9, 19])
def test_a_stopped_one_goes_on_as_if_it_had_not_been(dense, small, tmp_path, at):
    step = Descent.step

    def stopped(run):
        if run.clock.steps_gone == at:
            raise KeyboardInterrupt
        return step(run)

    how = Refining(steps=20, **STEPS)
    with mock.patch.object(Descent, "step", stopped), pytest.raises(KeyboardInterrupt):
        refined(small, dense, some(), how, folder=tmp_path)
    taken = []
    with mock.patch.object(Descent, "step", lambda run: taken.append(run.clock.steps_gone) or step(run)):
        found = refined(small, dense, some(), how, folder=tmp_path)
    assert taken[0] == (at // 2) * 2 and len(taken) == 20 - taken[0]  # it is saved each tenth of the way
    whole = refined(small, dense, some(), how)
    assert same(state(found.net), state(whole.net)) and found[1:] == whole[1:]


def test_what_is_done_is_not_done_again(dense, small, tmp_path):
    how = Refining(steps=10, **STEPS)
    first = refined(small, dense, some(), how, folder=tmp_path)
    with mock.patch.object(Descent, "step") as step:
        again = refined(small, dense, some(), how, folder=tmp_path)
    assert not step.called and same(state(first.net), state(again.net)) and first[1:] == again[1:]


def test_a_state_of_other_settings_is_left(dense, small, tmp_path):
    refined(small, dense, some(), Refining(steps=10, **STEPS), folder=tmp_path)
    with pytest.warns(NortonWarning, match="other settings; this one begins anew"):
        other = refined(small, dense, some(), Refining(steps=11, **STEPS), folder=tmp_path)
    assert other.steps == 11
    with pytest.warns(NortonWarning, match="other settings; this one begins anew"):
        refined(small, dense, some(), Refining(steps=11, **STEPS), skip=["9"], folder=tmp_path)
    (tmp_path / STATE).write_bytes(b"torn")
    with pytest.raises(norton.InputError, match=r"refine\.pt cannot be read .*; remove it"):
        refined(small, dense, some(), Refining(steps=10, **STEPS), folder=tmp_path)


# Images and networks of other kinds


@pytest.mark.parametrize(
    "images", [some(10), torch.zeros(20, 3, 10, 10), 50 + 9 * some(20)], ids=["ten", "alike", "odd"]
)
def test_few_and_odd_images_do_no_harm(dense, small, images):
    result = refined(small, dense, images, Refining(steps=10, **STEPS))
    assert result.after <= result.before and all(p.isfinite().all() for p in result.net.parameters())


def test_one_image_is_both(dense, small):
    with pytest.warns(NortonWarning, match="one image, or one batch"):
        result = refined(small, dense, some(1), Refining(steps=10, **STEPS))
    assert result.images == 1 and result.after <= result.before


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)

    def forward(self, x, scale):
        return {"map": self.norm(self.conv(x)).relu() * scale[:, None, None, None], "sum": scale}


def test_any_inputs_and_outputs():
    dense = TwoInputs().eval()
    batches = [(some(4, seed), torch.rand(4) + 1) for seed in range(6)]
    small = norton.decompose(dense, rank=1)
    result = refined(small, dense, batches, Refining(steps=60, **STEPS))
    assert result.after < 0.98 * result.before and result.images == 4


def test_batches_of_a_loader(dense, small):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(some(), torch.zeros(40)), batch_size=8)
    result = refined(small, dense, loader, Refining(steps=3, **STEPS))
    assert result.images == 8 and result.after <= result.before


# The parts


def test_values_are_compared_by_their_spread():
    generator = torch.Generator().manual_seed(0)
    wanted = [torch.randn(3, 2, 4, generator=generator) * 5 + 9 for _ in range(2)]
    found = torch.randn(3, 2, 4, generator=generator)
    mean = [[sum(b[i, j, k].item() for b in wanted for i in range(3)) / 6 for k in range(4)] for j in range(2)]
    cells = list(itertools.product(range(3), range(2), range(4)))
    spread = sum((b[i, j, k].item() - mean[j][k]) ** 2 for b in wanted for i, j, k in cells) / 48
    error = sum((found[i, j, k].item() - wanted[0][i, j, k].item()) ** 2 for i, j, k in cells) / 24
    answers = Answers(wanted)
    assert not answers.classes
    assert answers.distance(found, wanted[0]).item() == pytest.approx(error / spread, rel=1e-4)


def test_pixels_count_alike():
    generator = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    answers = Answers([{"out": wanted, "aux": found}])
    total = 0.0
    for i, h, w in itertools.product(range(2), range(4), range(5)):
        p, q = (softmax(x[i, :, h, w].tolist(), 4.0) for x in (wanted, found))
        total += 16 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 40
    assert answers.distance({"out": found}, {"out": wanted}).item() == pytest.approx(total, rel=1e-4)


def test_kinds_of_answers():
    two, one = torch.randn(4, 2), torch.randn(4, 1)
    assert Answers([two]).classes and not Answers([one]).classes and not Answers([two], "values").classes
    assert not Answers([[two, two]]).classes


def test_mixed_images_lie_between_two_of_them():
    images = torch.stack([torch.full((3, 8, 8), float(10**place)) for place in range(4)])
    mixing = Mixing(images, 4, seed=0)
    batch = mixing().args[0]
    flat = batch.flatten(1)
    assert batch.shape == images.shape and torch.allclose(flat, flat[:, :1].expand_as(flat))  # each is of one grey
    assert batch.min() >= 1 and batch.max() <= 1000 and len(set(flat[:, 0].tolist()) - {1.0, 10.0, 100.0, 1000.0}) > 0


def test_all_images_come_before_any_comes_again():
    mixing = Mixing([torch.full((1, 2), float(place)) for place in range(5)], 1, seed=0)
    drawn = [mixing().args[0][0, 0].item() for _ in range(10)]
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]


def test_no_image_is_on_both_sides():
    images = torch.arange(1000.0).view(-1, 1, 1, 1)
    ours, fresh = split(images, seed=0)
    assert len(fresh) == 200 and sorted([*ours.flatten().tolist(), *fresh.flatten().tolist()]) == list(range(1000))
    assert len(split(torch.zeros(9000, 1), 0)[1]) == 256
    assert [len(part) for part in split([torch.zeros(2, 1)] * 10, 0)] == [8, 2]


# Bad input


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": None}, "refine takes unlabelled images"),
        ({"images": torch.randn(9, 3, 10)}, "calibration images of shape"),
        ({"skip": ["layer9.*"]}, r"pattern 'layer9\.\*' matches none of the 5 layers: 0"),
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"minutes": -1}, "minutes is -1; it must be a number above 0"),
        ({"minutes": None}, "minutes and steps are both None"),
        ({"learning_rate": 0}, "learning_rate is 0"),
        ({"outputs": "logits"}, "outputs is 'logits'; choose one of auto, classes, values"),
        (
            {"dense": nn.Sequential(nn.Flatten(), nn.Linear(300, 7))},
            r"gives outputs of \(5,\), the dense one of \(7,\)",
        ),
    ],
)
def test_bad_input(dense, small, change, message):
    given = {"net": small, "dense": dense, "images": some(), "minutes": 0.01} | change
    with pytest.raises(norton.InputError, match=message):
        norton.refine(given.pop("net"), given.pop("dense"), given.pop("images"), **given)


class Finds(nn.Module):
    """As a detector: a box for each bright pixel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        y = self.conv(x).mean(1)
        return [image[image > 0] for image in y]


def test_outputs_of_any_number_cannot_be_compared():
    dense = Finds().eval()
    with pytest.raises(norton.InputError, match=r"gives outputs of \(\), \(\), \(\), \.\.\., .* backbone"):
        norton.refine(norton.decompose(dense, rank=1), dense, some(300), steps=1, minutes=None)
