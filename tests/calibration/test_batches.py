"""Calibration on whatever networks take: the same as on images alone, where that says the same."""

import pytest
import torch
from torch import nn

import norton
from norton.calibration import output_errors, reestimate_batchnorm_
from norton.calibration.batches import batches_of, count_of

pytestmark = pytest.mark.quick

OUTPUTS = norton.PruneOptions(min_filters=1, compensate="outputs")


class Plain(nn.Module):
    input_size = (3, 9, 9)

    def __init__(self):
        super().__init__()
        self.a, self.n, self.b, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))


class Several(Plain):
    """The same function of an image and a mask in a dictionary, scaled by a number."""

    input_size = None

    def forward(self, image, given, *, scale=1.0):
        return super().forward(image * given["mask"] * scale)


def nets():
    torch.manual_seed(0)
    plain = Plain().double().eval()
    several = Several().double().eval()
    several.load_state_dict(plain.state_dict())
    return plain, several


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(48, 3, 9, 9, generator=generator, dtype=torch.float64)
    mask = (torch.rand(48, 1, 9, 9, generator=generator) > 0.3).double()
    parts = list(zip(images.split(16), mask.split(16), strict=True))
    return images * mask / 2, {
        "by name": [{"image": 2 * x, "given": {"mask": m}, "scale": 0.25} for x, m in parts],
        "in order": [(x / 2, {"mask": m}) for x, m in parts],
    }


HOW = norton.Calibration(batch_size=16)
VERBS = {
    "outputs": lambda net, images, given: norton.decompose(net, 2, objective="outputs", images=images, calibration=HOW),
    "together": lambda net, images, given: norton.decompose(
        net, 2, objective="outputs", images=images, calibration=norton.Calibration(sequential=False, batch_size=16)
    ),
    "compensated": lambda net, images, given: norton.prune(
        net, 0.4, "l2", options=OUTPUTS, images=images, calibration=HOW, example=given
    ),
    "hrank": lambda net, images, given: norton.prune(
        net, 0.4, "hrank", options=norton.PruneOptions(min_filters=1), images=images, example=given
    ),
    "taylor": lambda net, images, given: norton.prune(
        net,
        0.4,
        "taylor",
        options=norton.PruneOptions(min_filters=1),
        images=images,
        labels=torch.arange(48) % 4,
        example=given,
    ),
}


@pytest.mark.parametrize("how", ["by name", "in order"])
@pytest.mark.parametrize("verb", VERBS)
def test_several_inputs_as_one(verb, how):
    plain, several = nets()
    images, batches = data()
    expected = VERBS[verb](plain, images, None)
    found = VERBS[verb](several, batches[how], batches[how][0])
    wanted = expected.state_dict()
    for key, value in found.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-6, atol=1e-8, msg=key)


def test_statistics_and_errors_of_several_inputs():
    plain, several = nets()
    images, batches = data()
    small = norton.decompose(several, 1)
    expected = output_errors(plain, norton.decompose(plain, 1), images)
    assert output_errors(several, small, batches["in order"]) == pytest.approx(expected)
    reestimate_batchnorm_(plain, images, 16)
    reestimate_batchnorm_(several, batches["by name"])
    torch.testing.assert_close(several.n.running_mean, plain.n.running_mean)
    torch.testing.assert_close(several.n.running_var, plain.n.running_var)


def test_a_budget_from_several_inputs():
    plain, several = nets()
    images, batches = data()
    how = norton.DecomposeOptions(objective="outputs")
    expected = norton.choose_ranks(plain, images, macs=0.6, decomposition=how, calibration=HOW)
    found = norton.choose_ranks(several, batches["by name"], macs=0.6, decomposition=how, calibration=HOW)
    assert found.ranks == expected.ranks
    assert found.errors == pytest.approx(expected.errors)


def test_how_images_become_batches():
    assert [batch.count for batch in batches_of(torch.zeros(5, 3, 4, 4), 2)] == [2, 2, 1]
    given = [(torch.zeros(3, 1), "x"), {"a": [torch.zeros(4, 2), torch.zeros(4)]}, torch.zeros(2, 1)]
    assert [batch.count for batch in batches_of(given, 2)] == [3, 4, 2]
    assert count_of(batches_of(given, 2)) == 9
    assert [x.shape for x in batches_of(given, 2)[1].first(1).tensors] == [(1, 2), (1,)]
    apart = batches_of([(torch.zeros(3, 1), torch.zeros(7))], 2)[0]
    assert apart.count == 1 and apart.first(1) is apart


@pytest.mark.parametrize("verb", [
    lambda net, images: norton.prune(net, 0.5, "hrank", images=images),
    lambda net, images: norton.decompose(net, 1, objective="outputs", images=images),
    lambda net, images: norton.choose_ranks(net, images, macs=0.5),
    norton.calibration.reestimate_batchnorm_,
])  # fmt: skip
@pytest.mark.parametrize("change, message", [
    (lambda x: x.long(), "torch.int64|does not take calibration images of 3×8×8: .*long int"),
    (lambda x: x[:0], r"at least one|\(0, 3, 8, 8\)"),
    (lambda x: [x[:0]], r"at least one|\(0, 3, 8, 8\)"),
    (lambda x: x * torch.nan, "infinite or undefined"),
    (lambda x: x.to("meta"), "are on the meta device, without values"),
])  # fmt: skip
def test_images_that_are_none(verb, change, message):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3))
    net.input_size = (3, 8, 8)
    with pytest.raises(norton.InputError, match=message) as error:
        verb(net, change(torch.ones(4, 3, 8, 8)))
    assert "\n" not in str(error.value)


def test_a_budget_for_what_has_no_parameters():
    with pytest.raises(norton.InputError, match="Sequential has no parameters, so there is nothing to fit"):
        norton.choose_ranks(nn.Sequential(nn.ReLU()), torch.ones(4, 3, 8, 8), macs=0.5)


@pytest.mark.parametrize("images, message", [
    ([], "calibration images as list; expected .*list of batches"),
    ("folder", "calibration images as str; expected"),
    ([("x",)], r"a batch is \('x',\); give an input"),
    ([(torch.zeros(2, 3, 9, 9), {"mask": torch.zeros(2, 1, 9, 9)})], "are torch.float32, the network torch.float64"),
    ([(torch.zeros(2, 3, 9, 9).double() / 0, 1)], "infinite or undefined"),
    ([(torch.zeros(2, 3, 9, 9).double(),)], r"Several does not take a batch of them \(missing .* argument: 'given'\)"),
])  # fmt: skip
def test_batches_that_are_none(images, message):
    with pytest.raises(norton.InputError, match=message) as error:
        norton.decompose(nets()[1], 2, objective="outputs", images=images)
    assert "\n" not in str(error.value)
