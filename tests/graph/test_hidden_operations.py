"""What a forward pass computes where nobody looks: in hooks of layers, scripted code, and functions that torch maps."""

import warnings

import pytest
import torch
from helpers.random_checks import cut, random_keep
from torch import nn

import norton

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # that torch.jit is old; public networks have it

    @torch.jit.script
    def gate_by_first(x):
        return torch.sigmoid(x[:, 0:1])

    class Gate(nn.Module):
        def forward(self, x):
            return torch.sigmoid(x[:, 0:1])

    SCRIPTED = torch.jit.script(Gate())

    class Block(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Sigmoid())

    def scripted_block():
        return torch.jit.script(Block().double())


class Net(nn.Module):
    """The first channel gates all others."""

    def __init__(self, gate=None, hook=None):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.head, self.gate = nn.Linear(8, 4), gate
        if hook is not None:
            self.first.register_forward_hook(hook)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = x if self.gate is None else x * self.gate(x)
        return self.head(torch.tanh(self.second(x)).mean((2, 3)))


def reversed_output(layer, args, output):
    return output.flip(1)


def gated_output(layer, args, output):
    return output * torch.sigmoid(output[:, :1])


def scripted_gate(x):
    return gate_by_first(x)


def mapped_gate(x):
    return torch.vmap(lambda image: torch.sigmoid(image[:1]))(x)


NETS = {
    "a hook that reverses channels": lambda: Net(hook=reversed_output),
    "a hook that gates by the first channel": lambda: Net(hook=gated_output),
    "a scripted function": lambda: Net(scripted_gate),
    "a scripted module": lambda: Net(SCRIPTED),
    "a function mapped over images": lambda: Net(mapped_gate),
}


@pytest.mark.parametrize("what", NETS)
def test_channels_are_not_lost(what):
    torch.manual_seed(0)
    net, images = NETS[what]().double(), torch.randn(3, 3, 8, 8).double()
    wiring = norton.wiring_of(net, (3, 8, 8))
    assert wiring.free_filters >= 8  # the other layer can lose filters in any case
    for number in range(4):
        keep = random_keep(wiring, number)
        small, gone = cut(net, wiring, keep), wiring.gone_filters(keep)
        with torch.no_grad():
            for name, filters in gone.items():
                net.get_submodule(name).weight[filters] = 0
            assert torch.allclose(small(images), net(images), atol=1e-12)
        net = NETS[what]().double()
        net.load_state_dict({key: torch.randn_like(value) for key, value in net.state_dict().items()})


def test_a_hook_that_reverses_channels_is_followed():
    assert norton.wiring_of(Net(hook=reversed_output), (3, 8, 8)).free_filters == 16


@pytest.mark.filterwarnings("ignore:.*torch.jit.script", "ignore:.*will need the dense network")
def test_a_scripted_module_with_layers_stays_whole_and_goes_on(tmp_path):
    """It is pruned around, copied with what may be trained, and loaded again."""
    torch.manual_seed(0)
    net, images = Net(scripted_block()).double(), torch.randn(3, 3, 8, 8).double()
    dict(net.gate.named_parameters())["1.weight"].requires_grad_(False)
    net.train()(images)
    wiring = norton.wiring_of(net, (3, 8, 8))
    assert wiring.free_filters == 8 and "first" in wiring.left_whole
    small = norton.prune(net, 0.5, "l2", options=norton.PruneOptions(min_filters=1), example=(3, 8, 8)).eval()
    gone = sorted({*range(8)} - {*small.plan[-1]["keep"]["second"]})
    again = norton.load(norton.save(small, tmp_path / "a.pt"), net=net)
    with torch.no_grad():
        net.second.weight[gone] = 0
        for one in (small, again):
            torch.testing.assert_close(one(images), net.eval()(images), rtol=0, atol=1e-12)
    for one in (small, again):
        before = {name: p.detach().clone() for name, p in one.gate.named_parameters()}
        optimiser = torch.optim.SGD(one.parameters(), 1.0)
        one.train()(images).square().sum().backward()
        optimiser.step()
        moved = {name for name, p in one.gate.named_parameters() if not torch.equal(p, before[name])}
        assert moved >= {"0.weight", "1.bias"} and "1.weight" not in moved


class NormedScale(nn.Module):
    """A scale of length one, whatever layers in front of it write."""

    def __init__(self):
        super().__init__()
        self.conv, self.scale, self.head = nn.Conv2d(3, 8, 3), nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 4)

    def forward(self, x):
        scale = self.scale / self.scale.norm(dim=0)
        return self.head((torch.tanh(self.conv(x)) * scale.view(1, -1, 1, 1)).mean((2, 3)))


def test_a_statistic_of_a_parameter_keeps_its_entries():
    assert "mixes entries of a parameter" in norton.wiring_of(NormedScale(), (3, 8, 8)).left_whole["conv"]
