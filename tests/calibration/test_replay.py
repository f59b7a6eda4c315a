"""A network played back layer by layer computes what it computes in one go."""

import pytest
import torch
from helpers.networks import randomise_
from helpers.residual import Residual, calibration_images
from torch import nn

import norton
from norton.calibration.replay import Replay


@pytest.fixture
def net() -> nn.Module:
    return randomise_(Residual())


def test_a_replay_computes_what_the_network_computes(net):
    images = calibration_images()
    batches = list(images.split(25))
    for keep in (True, False):
        replay = Replay(net, batches, keep=keep)
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
    replay = Replay(net, [x])
    last = [name for name in replay.calls if isinstance(net.get_submodule(name), nn.Linear)][-1]
    torch.testing.assert_close(next(replay.outputs(last)), net(x).detach())
