"""Networks of one to three dimensions, with transposed and grouped convolutions, through all that meets a network."""

import pytest
import torch
from torch import nn

import norton
from norton.decomposition import layer_nmse, output_errors
from norton.deployment.exact_forms import scale_outputs_
from norton.graph.plan import plan_of


class UNet(nn.Module):
    """Padding by reflection, transposed convolutions, one of them in groups, and one that is depthwise."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 12, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(12)
        self.grouped, self.depthwise = nn.Conv2d(12, 12, 3, 2, 1, groups=3), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.up, self.norm_up = nn.ConvTranspose2d(12, 12, 2, 2, groups=3), nn.BatchNorm2d(12)
        self.out = nn.ConvTranspose2d(24, 5, 3, padding=1)

    def forward(self, x):
        x = self.norm(self.down(x)).relu()
        y = self.depthwise(self.grouped(x).relu()).relu()
        return self.out(torch.cat([x, self.norm_up(self.up(y)).relu()], 1))


class Sound(nn.Module):
    input_size = (2, 40)

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 12, 9, 2, 4, padding_mode="circular"), nn.BatchNorm1d(12)
        self.grouped, self.point, self.fc = nn.Conv1d(12, 16, 5, groups=2), nn.Conv1d(16, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(self.point(self.grouped(self.norm(self.first(x)).relu()).relu()).mean(2))


class Video(nn.Module):
    input_size = (3, 5, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv3d(3, 12, 3, (1, 2, 2), 1, bias=False), nn.BatchNorm3d(12)
        self.grouped, self.up = nn.Conv3d(12, 8, (3, 1, 2), groups=4), nn.ConvTranspose3d(8, 4, 2, stride=(1, 2, 1))

    def forward(self, x):
        return self.up(self.grouped(self.norm(self.first(x)).relu()).relu())


def norms(net):
    return [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


def prepared(make):
    torch.manual_seed(3)
    net = make().double().eval()
    for norm in norms(net):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
    return net, torch.randn(48, *make.input_size, dtype=torch.float64)


@pytest.mark.parametrize("method", ["cp", "tucker", "svd"])
@pytest.mark.parametrize("make", [UNet, Sound, Video])
@pytest.mark.filterwarnings("ignore:.*norton.load will need", "ignore:48 images have fewer patches")
def test_in_networks(make, method, tmp_path):
    """Fitted to outputs, pruned, saved, deployed, summed up."""
    net, x = prepared(make)
    y, fast = net(x), {"starts": 1, "iterations": 20} if method == "cp" else {}
    full = norton.decompose(net, {"fraction": 1}, method, objective="outputs", images=x)
    torch.testing.assert_close(full(x), y, rtol=1e-4, atol=1e-4)
    small = norton.decompose(net, {"fraction": 0.5}, method, **fast)
    fitted = norton.decompose(net, {"fraction": 0.5}, method, objective="outputs", images=x, **fast)
    assert not hasattr(getattr(small, "depthwise", None), "composed_weight")
    assert (fitted(x) - y).norm() < (small(x) - y).norm()
    found = output_errors(net, fitted, x)
    assert found.keys() == layer_nmse(net, fitted).keys() == set(plan_of(fitted)[0]["ranks"])
    for norm in norms(fitted):  # they map zero to zero
        nn.init.zeros_(norm.bias)
        nn.init.zeros_(norm.running_mean)
    pruned = norton.prune(fitted, 0.4, "l2", options=norton.PruneOptions(min_filters=1), example=x[:1])
    for one in (fitted, pruned):
        again = norton.load(norton.save(one, tmp_path / "net.pt"), net=make())
        assert torch.equal(again(x), one(x))
        torch.testing.assert_close(norton.deploy(one, x[:2], repeats=1)(x), one(x), rtol=1e-9, atol=1e-9)
        assert sum(layer.rank is not None for layer in norton.summary(one, example=x[:1]).layers) == len(found)
    wiring = norton.wiring_of(fitted, example=x[:1])
    keep = {wiring.axis_of(name): kept for name, kept in plan_of(pruned)[-1]["keep"].items()}
    for name, gone in wiring.gone_filters(keep).items():  # what went might as well have been zero
        layer = fitted.get_submodule(name)
        alive = (~torch.isin(torch.arange(layer.out_channels), torch.tensor(gone))).double()
        assert alive.any() and not alive.all()
        scale_outputs_(layer, alive, torch.zeros_like(alive))
    torch.testing.assert_close(pruned(x), fitted(x), rtol=1e-9, atol=1e-9)


def test_a_layer_with_hooks_is_deployed_with_them():
    net, x = prepared(Sound)
    small = norton.decompose(net, {"fraction": 0.5}, "cp", starts=1)
    small.first.register_forward_hook(lambda layer, args, y: y * 2)
    torch.testing.assert_close(norton.deploy(small, x, repeats=1)(x), small(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["cp", "tucker"])
@pytest.mark.parametrize("make", [UNet, Sound, Video])
@pytest.mark.filterwarnings("ignore:48 images have fewer patches")
def test_ranks_for_a_budget(make, method):
    net, x = prepared(make)
    how = norton.DecomposeOptions(method, options={"starts": 1} if method == "cp" else {})
    choice = norton.choose_ranks(net, x, params=0.85, decomposition=how)
    small = norton.decompose(net, choice.ranks, method, objective="outputs", images=x)
    share = norton.complexity(small, example=x[:1]).params / norton.complexity(net, example=x[:1]).params
    assert share <= 0.85
    assert (small(x) - net(x)).norm() < 0.5 * net(x).norm()
