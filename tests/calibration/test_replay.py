"""A network played back layer by layer computes what it computes in one go."""

import threading

import pytest
import torch
from helpers.networks import randomise_
from helpers.residual import Residual, calibration_images
from torch import nn

import norton
from norton.calibration.batches import batches_of
from norton.calibration.layer_calls import record_calls
from norton.calibration.replay import Replay
from norton.graph.inputs import Inputs

COMPENSATED = norton.PruneOptions(compensate="outputs", min_filters=1)


@pytest.fixture
def net() -> nn.Module:
    return randomise_(Residual())


def test_a_replay_computes_what_the_network_computes(net):
    images = calibration_images()
    batches = list(images.split(25))
    for keep in (True, False):
        replay = Replay(net, [Inputs((x,)) for x in batches], keep=keep)
        assert list(replay.calls)[:3] == ["stem", "conv1", "bn1"]
        assert replay.readers("conv1") == ["bn1"]
        assert replay.readers("stem") == [None]
        torch.testing.assert_close(torch.cat(list(replay.inputs("conv1"))), net.stem(images).relu())
        torch.testing.assert_close(torch.cat(list(replay.outputs("conv1"))), net.conv1(net.stem(images).relu()))
        torch.testing.assert_close(torch.cat(list(replay.outputs("fc"))), net(images))


@pytest.mark.parametrize("arch", ["vgg_16_bn", "resnet_56", "densenet_40"])
def test_the_declared_networks_can_be_replayed(arch):
    net = randomise_(norton.build(arch))
    x = torch.randn(2, 3, 32, 32)
    replay = Replay(net, [Inputs((x,))])
    last = [name for name in replay.calls if isinstance(net.get_submodule(name), nn.Linear)][-1]
    torch.testing.assert_close(next(replay.outputs(last)), net(x).detach())


class Unusual(nn.Module):
    """What symbolic tracing refuses or gets wrong: values and types decide, an argument has a default."""

    def __init__(self, defaults=True):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.rows = [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True)]  # a list that torch does not see
        self.last = nn.ModuleList([*self.rows, nn.Conv2d(8, 6, 3)])
        self.defaults = defaults

    def forward(self, x, gain=2.0, again=None):
        x = self.norm(self.first(x))
        assert isinstance(self.norm, nn.BatchNorm2d) and len(self.norm.weight) == x.shape[1]
        if x.abs().max() > 0:
            x = x * (gain if self.defaults else 2.0)
        for layer in self.rows:
            x = layer(x)
        return self.last[2](x).mean((2, 3))


def test_the_networks_own_code_runs():
    net, images = randomise_(Unusual()), calibration_images()
    replay = Replay(net, batches_of(images, 25))
    assert list(replay.calls) == ["first", "norm", "last.0", "last.1", "last.2"] and not replay.repeated
    assert [replay.readers(name) for name in replay.calls] == [["norm"], [None, None], ["last.1"], ["last.2"], [None]]
    torch.testing.assert_close(torch.cat(list(replay.inputs("last.0"))), 2 * net.norm(net.first(images)))
    torch.testing.assert_close(torch.cat(list(replay.outputs("last.2"))).mean((2, 3)), net(images))
    replay.close()


def test_a_replaced_layer_is_computed_as_what_it_is_by_then(net):
    images = calibration_images()
    for keep in (True, False):
        replay = Replay(net, batches_of(images, 25), keep=keep)
        list(replay.inputs("conv1"))
        net.conv1 = randomise_(nn.Conv2d(8, 8, 3, padding=1))
        torch.testing.assert_close(torch.cat(list(replay.outputs("fc"))), net(images))
        replay.close()


class Scaled(Residual):
    """A residual network with an argument that has a default."""

    def forward(self, x, gain=1.0):
        return super().forward(x) * gain


@pytest.mark.parametrize("compress", [
    lambda net, images: norton.decompose(net, 1, objective="outputs", images=images),
    lambda net, images: norton.prune(net, 0.5, "l2", images=images, options=COMPENSATED, example=(3, 8, 8)),
], ids=["decompose", "prune"])  # fmt: skip
def test_an_argument_with_a_default_keeps_it(compress):
    """Report: the images were given to every argument, and computed with as the gain."""
    plain, scaled, images = randomise_(Residual()), Scaled(), calibration_images()
    scaled.load_state_dict(plain.state_dict())
    one, other = compress(plain, images), compress(scaled.eval(), images)
    torch.testing.assert_close(one(images), other(images), rtol=0, atol=0)


class Alternating(Unusual):
    """The order of its layers depends on the images."""

    def forward(self, x):
        first, second = self.rows if x.mean() > 0 else reversed(self.rows)
        return self.last[2](second(first(self.norm(self.first(x)))))


def test_another_order_for_other_images_is_refused():
    net, images = randomise_(Alternating()), calibration_images(2).abs()
    replay = Replay(net, batches_of([images, -images], 1))
    with pytest.raises(norton.InputError, match="Alternating calls its layers in another order for other images"):
        list(replay.outputs("last.2"))
    replay.close()


def test_passes_that_wait_end(net):
    before = threading.active_count()
    replay = Replay(net, batches_of(calibration_images(), 25))
    list(replay.inputs("conv1"))
    assert threading.active_count() > before
    replay.close()
    assert threading.active_count() == before


def test_what_is_held(net):
    """Of the residual network: the images, and the stem's output beside that of each layer of its block."""
    image = calibration_images(1)
    stem = net.stem(image).nbytes
    assert 2 * stem <= record_calls(net, Inputs((image,))).held <= 4 * stem + image.nbytes
