"""Decomposing for outputs: the network's own, layer by layer or in the order of the forward pass."""

import copy

import pytest
import torch
from helpers.metrics import noise
from helpers.networks import randomise_
from helpers.residual import Residual, calibration_images
from torch import nn

import norton
from norton import Calibration, InputError
from norton.calibration.input_moments import InputMoments
from norton.calibration.outputs import least_squares_target
from norton.common.errors import NortonWarning


def test_the_target_is_ridge_regression_on_the_dense_outputs():
    x, y, weight = noise(80, 12) + 1, noise(80, 3, seed=1) + 2, noise(3, 12, seed=2)
    moments = InputMoments([x.T @ x / 80], x.mean(0), y.T @ x / 80, y.mean(0), 80)
    for centred in (True, False):
        found, metric = least_squares_target(weight, moments, 0.1, centred=centred)
        a, b = (x - x.mean(0), y - y.mean(0)) if centred else (x, y)
        level = 0.1 * (a.square().sum() / 80 / 12)
        rows = torch.cat([a, (80 * level).sqrt() * torch.eye(12, dtype=torch.float64)])
        right = torch.cat([b, (80 * level).sqrt() * weight.T])
        torch.testing.assert_close(found.T, torch.linalg.lstsq(rows, right).solution)
        torch.testing.assert_close(metric.blocks[0], a.T @ a / 80 + level * torch.eye(12, dtype=torch.float64))


@pytest.fixture
def net() -> nn.Module:
    return randomise_(Residual())


def drift(net: nn.Module, small: nn.Module, images: torch.Tensor) -> float:
    with torch.no_grad():
        return ((net(images) - small(images)).square().mean() / net(images).var()).item()


def test_outputs_are_nearer_than_those_of_the_weight_fit(net):
    images, held_out = calibration_images(600)[:400], calibration_images(600)[400:]
    fitted = {
        "weights": norton.decompose(net, 1),
        "independent": norton.decompose(
            net, 1, objective="outputs", images=images, calibration=Calibration(sequential=False)
        ),
        "sequential": norton.decompose(net, 1, objective="outputs", images=images),
    }
    found = {name: drift(net, small, held_out) for name, small in fitted.items()}
    assert found["independent"] < 0.8 * found["weights"]
    assert found["sequential"] < 0.9 * found["independent"]


@pytest.mark.parametrize("sequential", [True, False])
def test_the_full_rank_is_exact(net, sequential):
    images = calibration_images()
    how = Calibration(sequential=sequential, ridge=1e-4)
    assert drift(net, norton.decompose(net, 9, objective="outputs", images=images, calibration=how), images) < 1e-5


@pytest.mark.parametrize("sequential", [True, False])
def test_outputs_keep_their_means(net, sequential):
    images = calibration_images()
    small = norton.decompose(
        net, {"stem": 1}, objective="outputs", images=images, calibration=Calibration(sequential=sequential)
    )
    torch.testing.assert_close(
        small.stem(images).mean((0, 2, 3)), net.stem(images).mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )


def test_where_a_batchnorm_follows_its_mean_moves(net):
    images = calibration_images()
    small = norton.decompose(
        net, {"conv1": 1}, objective="outputs", images=images, calibration=Calibration(sequential=False)
    )
    x = net.stem(images).relu()
    shifts = [layer.conv1(x).mean((0, 2, 3)) - layer.bn1.running_mean for layer in (net, small)]
    torch.testing.assert_close(*shifts, rtol=1e-4, atol=1e-5)


def test_the_sequential_form_carries_batchnorm_along(net):
    images = calibration_images()
    small = norton.decompose(net, 1, objective="outputs", images=images).eval()
    means = [inputs_of(layer, "bn2", images).mean((0, 2, 3)) for layer in (net, small)]
    torch.testing.assert_close(small.bn2.running_mean, net.bn2.running_mean + means[1] - means[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(small.bn2.running_var, net.bn2.running_var)


def inputs_of(net: nn.Module, name: str, images: torch.Tensor) -> torch.Tensor:
    found = []
    handle = net.get_submodule(name).register_forward_pre_hook(lambda layer, x: found.append(x[0].detach().clone()))
    net(images)
    handle.remove()
    return found[0]


def test_nothing_of_the_network_changes(net):
    before = copy.deepcopy(net.state_dict())
    attributes = set(vars(net))
    net.train()
    small = norton.decompose(net, 2, objective="outputs", images=calibration_images())
    assert small.training
    assert net.training
    assert set(vars(net)) == attributes
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert {layer.form for layer in small.modules() if hasattr(layer, "form")} == {"factored"}


def test_streamed_is_the_same(net):
    images = calibration_images()
    kept = norton.decompose(net, 2, objective="outputs", images=images, calibration=Calibration(batch_size=16))
    with pytest.warns(UserWarning, match="streamed"):
        streamed = norton.decompose(
            net, 2, objective="outputs", images=images, calibration=Calibration(batch_size=16, memory=8e5)
        )
    for one, other in zip(kept.state_dict().values(), streamed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_little_memory_takes_blocks_of_channels(net):
    images = calibration_images()
    with pytest.warns(UserWarning, match=r"more memory than there is in 1 layer \(conv1\); block-diagonal instead"):
        small = norton.decompose(
            net, {"conv1": 1}, objective="outputs", images=images, calibration=Calibration(memory=1e5)
        )
    assert drift(net, small, images) < drift(net, norton.decompose(net, {"conv1": 1}), images)


class Twice(nn.Module):
    """A layer that reads first nearly nothing, then what counts."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 1)

    def forward(self, x):
        return self.last(self.conv(1e-3 * x[:, :1].expand(-1, 4, -1, -1)) + self.conv(x))


def test_a_layer_called_twice_is_fitted_to_its_weight_and_that_is_said():
    torch.manual_seed(0)
    net = Twice().double()
    with pytest.warns(NortonWarning, match=r"called several times: 1 layer \(conv\); weights alone decide there"):
        small = norton.decompose(net, 2, objective="outputs", images=noise(32, 4, 8, 8))
    for one, other in zip(small.conv.parameters(), norton.decompose(net, 2).conv.parameters(), strict=True):
        assert torch.equal(one, other)


def test_norms_called_twice_stay_as_they_were(net):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.norm = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.two(self.norm(self.one(x))))

    torch.manual_seed(0)
    net = randomise_(Normed()).eval()
    small = norton.decompose(net, 1, objective="outputs", images=calibration_images())
    assert torch.equal(small.norm.running_mean, net.norm.running_mean)


def test_modes_of_layers_stay(net):
    net.train()
    net.bn1.eval(), net.conv1.eval()
    for objective in ("weights", "outputs"):
        small = norton.decompose(net, 1, objective=objective, images=calibration_images())
        assert {name for name, layer in small.named_children() if not layer.training} == {"bn1", "conv1"}
        assert not small.conv1.feature.pointwise.training and small.stem.feature.pointwise.training


def test_images_stay_as_they_were():
    torch.manual_seed(0)
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)).eval()
    images = calibration_images()
    before = images.clone()
    norton.decompose(net, 1, objective="outputs", images=images)
    assert torch.equal(images, before)


def test_arguments_by_name(net):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(input=x)

    torch.manual_seed(0)
    net, images = Named().eval(), calibration_images()
    small = norton.decompose(net, 1, objective="outputs", images=images)
    assert drift(net, small, images) < drift(net, norton.decompose(net, 1), images)


def test_layers_under_two_names_stay_one(net):
    net.again = net.conv1
    small = norton.decompose(net, 1, objective="outputs", images=calibration_images())
    assert small.again is small.conv1


def test_a_network_that_is_one_layer():
    conv = nn.Conv2d(3, 4, 3)
    small = norton.decompose(conv, 1, objective="outputs", images=calibration_images())
    images = calibration_images()
    assert drift(conv, small, images) < drift(conv, norton.decompose(conv, 1), images)


def test_saved_and_loaded_again(tmp_path):
    net = randomise_(norton.build("resnet_56"))
    images = torch.randn(24, 3, 32, 32)
    small = norton.decompose(net, {"layer1.0.*": 2}, objective="outputs", images=images)
    norton.save(small, tmp_path / "small.pt")
    torch.testing.assert_close(norton.load(tmp_path / "small.pt")(images), small(images))


# What can be wrong


def test_without_images_weights_are_fitted_and_that_is_said(net):
    with pytest.warns(UserWarning, match="without calibration images: fitted to the weights instead"):
        small = norton.decompose(net, 2, objective="outputs")
    for one, other in zip(small.parameters(), norton.decompose(net, 2).parameters(), strict=True):
        assert torch.equal(one, other)


def test_few_images_are_said(net):
    with pytest.warns(UserWarning, match="1 images have fewer patches than a filter has numbers in 2 layers"):
        norton.decompose(net, 1, objective="outputs", images=calibration_images(1), skip=["stem"])


def test_a_layer_that_no_image_reaches(net):
    net.aside = nn.Conv2d(3, 4, 3)
    with pytest.warns(UserWarning, match=r"no calibration image reaches 1 layer \(aside\); weights alone decide there"):
        small = norton.decompose(net, 2, objective="outputs", images=calibration_images())
    torch.testing.assert_close(small.aside.composed_weight(), norton.decompose(net, 2).aside.composed_weight())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 9, 9), "3×9×9; the network takes 3×8×8"),
        (torch.zeros(0, 3, 8, 8), r"expected \(N, C, H, W\), at least one"),
        (torch.full((2, 3, 8, 8), torch.nan), "infinite or undefined"),
        (torch.zeros(2, 3, 8, 8).double(), "calibration images are torch.float64, the network torch.float32"),
        (torch.zeros(2, 3, 8, 8).byte(), "calibration images are torch.uint8, the network torch.float32"),
    ],
)
def test_images_that_do_not_fit(net, images, message):
    with pytest.raises(InputError, match=message):
        norton.decompose(net, 1, objective="outputs", images=images)


def test_images_that_a_network_without_a_size_does_not_take():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)).eval()
    for size in ((3, 9, 9), (4, 8, 8)):
        with pytest.raises(
            InputError, match=f"Sequential does not take calibration images of {'×'.join(map(str, size))}"
        ):
            norton.decompose(net, 1, objective="outputs", images=torch.zeros(2, *size))


def test_infinite_activations_are_named(net):
    net.bn1.running_mean[0] = torch.nan
    with pytest.raises(InputError, match=r"conv2: what it reads .* is infinite or undefined"):
        norton.decompose(net, 1, objective="outputs", images=calibration_images())


def test_bad_settings(net):
    with pytest.raises(InputError, match="objective is 'output'; choose one of auto, weights, outputs"):
        norton.decompose(net, 1, objective="output")
    for setting in (
        {"sequential": "no"},
        {"ridge": 0},
        {"sweeps": -1},
        {"sweeps": 1.5},
        {"batch_size": 0},
        {"memory": -1},
    ):
        with pytest.raises(InputError, match=next(iter(setting))):
            Calibration(**setting)
