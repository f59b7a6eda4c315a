"""Networks of several inputs, of arguments by name, and those that need values, are cut exactly."""

import pytest
import torch
from helpers.cutting import dead_outputs, outputs_without_offsets, randomised
from torch import nn
from torch.utils._pytree import tree_leaves

import norton
from norton.graph.input_sizes import is_size
from norton.graph.inputs import Inputs, inputs_of

pytestmark = pytest.mark.quick


def images(*size):
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(len(size)), dtype=torch.float64)


def block(inputs, outputs):
    return nn.Sequential(nn.Conv2d(inputs, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, outputs, 1))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.head, self.embed = block(3, 8), nn.Conv2d(16, 2, 1), nn.Linear(5, 16)

    def forward(self, image, other=None, *, extra=None, return_features=False):
        x = self.encode(image)
        y = self.encode(image if other is None else other)
        features = torch.cat([x, y], 1)
        if extra is not None:
            features = features * self.embed(extra["vector"])[:, :, None, None]
        result = {"change": self.head(features.relu())}
        return (result, features) if return_features else result


class Batch(nn.Module):
    """Takes one dictionary."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)

    def forward(self, batch):
        x = self.a(batch["image"]) * batch["mask"][:, :, 1:-1, 1:-1]
        return [self.b(x.relu()), batch["name"]]


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.a, self.b = nn.Embedding(20, 8), nn.Conv1d(8, 12, 3), nn.Linear(12, 8)

    def forward(self, tokens):
        return self.b(self.a(self.table(tokens).transpose(1, 2)).relu().mean(2))


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def sequential(kind):
    return nn.Sequential(kind(3, 8, 3), nn.ReLU(), kind(8, 8, 3), nn.ReLU(), kind(8, 4, 1))


A, B = images(3, 9, 9), images(3, 9, 9).flip(0)
CASES = {
    "two": (Two, (A, B), {"encode.0": 12}),  # `embed` may be called when there is more
    "first alone": (Two, A, {"encode.0": 12}),
    "size": (Two, (3, 9, 9), {"encode.0": 12}),
    "list": (Two, [A, B], {"encode.0": 12}),
    "names": (Two, {"other": B, "image": A, "extra": {"vector": images(5)}}, {"encode.0": 12, "encode.3": 8}),
    "flag": (Two, {"image": A, "return_features": True}, {"encode.0": 12}),
    "one of a batch": (Two, (A[:1], B[:1]), {"encode.0": 12}),
    "a dictionary": (Batch, ({"image": A, "mask": images(1, 9, 9), "name": "x"},), {"a": 8}),
    "tokens": (Tokens, torch.randint(20, (2, 7)), {"a": 12}),
    "1-D": (lambda: sequential(nn.Conv1d), images(3, 12), {"0": 8, "2": 8}),
    "3-D": (lambda: sequential(nn.Conv3d), images(3, 6, 7, 8), {"0": 8, "2": 8}),
    "features last": (Features, images(4, 6), {"a": 16, "b": 8}),
}


def as_called(example):
    inputs = Inputs((images(*example),)) if is_size(example) else inputs_of(example)
    return inputs.map(lambda x: x.double() if x.is_floating_point() else x)


def flat(outputs):
    return torch.cat([x.flatten() for x in tree_leaves(outputs) if isinstance(x, torch.Tensor)])


def check_dead(net, example, inputs=None):
    """A network that is cut equals, for these inputs, the one whose removed filters are dead; returns it."""
    inputs = inputs or as_called(example)
    wiring = norton.wiring_of(net, example)
    options = norton.PruneOptions(min_filters=1)
    small = norton.prune(net, 0.4, criterion="random", options=options, example=example)
    keep = {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}

    expected, found = flat(dead_outputs(net, wiring, keep, inputs)), flat(outputs_without_offsets(small, inputs))
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    return small


@pytest.mark.parametrize("name", CASES)
def test_kinds_of_inputs(name):
    make, example, widths = CASES[name]
    torch.manual_seed(0)
    net = randomised(make().double(), name)
    wiring = norton.wiring_of(net, example)
    free = {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in wiring.frozen}
    assert free == widths
    check_dead(net, example)


@pytest.mark.parametrize("name", ["two", "names", "tokens", "features last"])
def test_pruned_again_and_counted_without_saying_the_example_again(name):
    make, example, _ = CASES[name]
    net = randomised(make().double(), name)
    small = norton.prune(net, 0.4, criterion="l2", options=norton.PruneOptions(min_filters=1), example=example)
    smaller = norton.prune(small, 0.4, criterion="l2", options=norton.PruneOptions(min_filters=1))
    assert (
        norton.complexity(smaller).macs < norton.complexity(small).macs < norton.complexity(net, example=example).macs
    )


def test_tensors_that_a_forward_pass_makes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(10, 4, 1)

        def forward(self, x):
            x = self.a(x).relu()
            return self.b(torch.cat([x, torch.zeros(len(x), 2, *x.shape[2:], dtype=x.dtype)], 1))

    net = randomised(Net().double())
    assert "a" not in norton.wiring_of(net, A).left_whole
    check_dead(net, A)


# Values


ASKED = {
    "if": lambda x: bool(x.mean() > 0),
    "item": lambda x: x.mean().item() > 0,
    "tolist": lambda x: x.mean((1, 2, 3)).tolist()[0] > 0,
    "float": lambda x: float(x.mean()) > 0,
    "int": lambda x: int(x.mean().sign()) > 0,
    "nonzero": lambda x: len((x.mean((1, 2, 3)) > 0).nonzero()) > 1,
    "mask": lambda x: len(x[x.mean((1, 2, 3)) > 0]) > 1,
}


class Exit(nn.Module):
    """Goes on as values say, by one of two branches; `how`: they are asked."""

    def __init__(self, how="if"):
        super().__init__()
        self.a, self.b, self.c = block(3, 8), block(8, 8), nn.Conv2d(8, 8, 3)
        self.d, self.head, self.ask = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1), ASKED[how]

    def forward(self, x):
        kept = self.d(self.a(x))
        y = torch.relu(kept)
        y = self.b(y) if self.ask(x) else self.c(y)[:, :, 1:-1] + kept[:, :, 2:-2, 1:-1]
        return self.head(y.relu())


@pytest.mark.parametrize("how", ASKED)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_decides_by_values_is_cut_inside_of_what_does_not(how, sign):
    """However the example went, the other way is right too, though a record never saw it."""
    net = randomised(Exit(how).double(), how)
    seen, other = sign * A.abs(), -sign * A.abs()
    for inputs in (seen, other):
        small = check_dead(net, seen, Inputs((inputs,)))
        assert small.a[0].out_channels < 12 and small.b[0].out_channels == (12 if sign < 0 else small.a[0].out_channels)
        assert small.a[3].out_channels == small.d.out_channels == small.c.out_channels == 8
    with pytest.raises(norton.InputError, match=r"needs values: pass example= with real data"):
        norton.prune(net, 0.4, criterion="l2", example=(3, 9, 9))


class Told(nn.Module):
    """A module that is told what values say, as a plain argument."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x, use):
            x = self.a(x).relu()
            return self.b(x) if use else self.c(x)

    def __init__(self):
        super().__init__()
        self.inner = self.Inner()

    def forward(self, x):
        return self.inner(x, bool(x.mean() > 0))


def test_a_decision_that_is_handed_on_freezes_where_it_goes():
    wiring = norton.wiring_of(Told().double(), A.abs())
    assert "inner.a" in wiring.left_whole


def test_a_trial_cut_takes_the_way_that_was_recorded():
    """After a cut other values would go another way, which says nothing about the cut."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = block(3, 8), nn.Conv2d(8, 3, 1)

        def forward(self, x):
            x = self.a(x)
            assert x[0, 0, 0, 0].item() == x[0, 0, 0, 0].item()
            for _ in range(int(1e4 * x.std()) % 7):
                x = x + 1
            return self.head(x)

    net = randomised(Net().double())
    wiring = norton.wiring_of(net, A)
    assert "a.0" not in wiring.left_whole and "a.3" in wiring.left_whole


# What people get wrong


@pytest.mark.parametrize("example, message", [
    ("photo.png", "example is 'photo.png'; give an input"),
    (A.numpy(), "example is ndarray; give .*torch tensors"),
    ((), r"example is \(\); give"),
    ({"image": None}, "example is dict; give"),
    ((0, 9, 9), r"example is \(0, 9, 9\); give"),
    (A.long(), r"Two takes no input of size 3×9×9: layer encode.0, .*Input type \(long int\).*pass example="),
    (A[:0], r"example is of shape \(0, 3, 9, 9\), which has no numbers in it; give at least one image"),
    ((A[:0], A[:0]), r"example is of shape \(0, 3, 9, 9\) and \(0, 3, 9, 9\), which has no numbers in it"),
    ((A, "x"), r"Two takes no input of size 3×9×9: layer encode.0, .*pass example=, an input"),
    ({"picture": A}, "unexpected keyword argument 'picture'"),
])  # fmt: skip
def test_examples_that_are_none(example, message):
    with pytest.raises(norton.InputError, match=message) as error:
        norton.wiring_of(Two(), example)
    assert "\n" not in str(error.value)


def test_values_that_a_network_decides_by_may_not_be_undefined():
    with pytest.raises(norton.InputError, match="example= has NaN in it, and the forward pass decides by values"):
        norton.wiring_of(Told().double(), A * torch.nan)
    assert norton.wiring_of(Two(), A.float() * torch.nan).writers  # whose size alone is asked for


class Yielding(nn.Sequential):
    def forward(self, x):
        for layer in self:
            yield (x := layer(x))


@pytest.mark.parametrize("verb", [
    norton.wiring_of, norton.complexity, lambda net: norton.decompose(net, 1, "svd"), lambda net: norton.prune(net, 0.5)
])  # fmt: skip
def test_a_forward_pass_that_yields(verb):
    net = Yielding(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1))
    with pytest.raises(norton.InputError, match=r"forward pass of Yielding yields, .* a list"):
        verb(net)

    class Whole(nn.Module):
        input_size = (3, 8, 8)

        def __init__(self):
            super().__init__()
            self.steps = net

        def forward(self, x):
            return list(self.steps(x))[-1]

    verb(Whole())


@pytest.mark.parametrize("verb", [lambda net: norton.decompose(net, 1), lambda net: norton.prune(net, 0.5)])
def test_networks_without_values(verb):
    with torch.device("meta"):
        net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1))
    with pytest.raises(norton.InputError, match=r"0.weight is on the meta device, without values; load the weights"):
        verb(net)


def test_networks_without_parameters():
    with pytest.raises(norton.InputError, match="Sequential has no parameters, so there is nothing to cut"):
        norton.prune(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), 0.5)


class Clips(nn.Module):
    """A temporal shift: takes frames four at a time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = self.a(x).relu().unflatten(0, (-1, 4))
        return self.b(y.roll(1, 1).flatten(0, 1))


class Pictures(Clips):
    """Takes a list of images of sizes of their own, as detectors do."""

    def forward(self, images):
        return [self.b(self.a(image[None]).relu()) for image in images]


@pytest.mark.parametrize("kind, example", [
    (Clips, images(3, 9, 9).repeat(4, 1, 1, 1)),
    (Clips, {"x": images(3, 9, 9).repeat(4, 1, 1, 1)}),
    (Pictures, ([*images(3, 9, 9)],)),
    (Pictures, {"images": [images(3, 9, 9)[0]]}),
])  # fmt: skip
def test_the_example_is_remembered_as_it_was_given(kind, example, tmp_path):
    net = kind().double()
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=example)
    assert small.a.out_channels == 4
    again = norton.load(norton.save(small, tmp_path / "a.pt"), net=kind().double())
    inputs = inputs_of(example)
    for one, other in zip(tree_leaves(inputs.call(again)), tree_leaves(inputs.call(small.eval())), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert norton.prune(again, 0.5, "l2", options=norton.PruneOptions(min_filters=1)).a.out_channels == 2
    assert (tmp_path / "a.pt").stat().st_size < 30_000


def test_many_samples_take_no_room_in_a_file(tmp_path):
    net, mask = Two(), torch.ones(64, 3, 64, 64)
    small = norton.prune(net, 0.5, "l2", example=(mask, mask))
    assert norton.save(small, tmp_path / "a.pt").stat().st_size < 3 * mask[0].nbytes + 60_000


def test_words_as_calibration_images_and_deployed():
    net, words = Tokens().eval(), torch.randint(0, 20, (4, 15), generator=torch.Generator().manual_seed(0))
    options = norton.PruneOptions(min_filters=1, compensate="outputs")
    small = norton.prune(net, 0.3, "l2", options=options, example=words, images=words).eval()
    torch.testing.assert_close(norton.deploy(small, words, repeats=1)(words), small(words))
    with pytest.raises(norton.InputError, match=r"Two does not take a batch of them .*; give a list of batches"):
        norton.prune(Two(), 0.3, "l2", options=options, example=(A, B), images=[{"other": B.float()}])
