"""A network with one function of choice between two convolutions, and what every cut of it has to equal."""

import torch
from torch import nn

import norton
from helpers.random_checks import cut, random_keep


class Between(nn.Module):
    """between: (network, what the first convolution writes) → what the second one reads, of as many channels."""

    def __init__(self, between, width=16, read=None, **modules):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.second = nn.Conv2d(width if read is None else read, 8, 3, padding=1, bias=False)
        self.head, self.between = nn.Linear(8, 4), between
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.head(torch.tanh(self.second(self.between(self, torch.tanh(self.first(x))))).mean((2, 3)))


@torch.no_grad()
def wiring_of_exact(make, cuts=3):
    """The wiring of a network that `make` makes, after some of its cuts were compared with dead filters."""
    torch.manual_seed(0)
    net, images = make().double().eval(), torch.randn(3, 3, 8, 8).double()
    wiring = norton.wiring_of(net, images)
    for number in range(cuts):
        keep = random_keep(wiring, number)
        small, dead = cut(net, wiring, keep), make().double().eval()
        dead.load_state_dict(net.state_dict())
        for name, filters in wiring.gone_filters(keep).items():
            dead.get_submodule(name).weight[filters] = 0
            if dead.get_submodule(name).bias is not None:
                dead.get_submodule(name).bias[filters] = 0
        assert torch.allclose(small(images), dead(images), atol=1e-12)
        assert not keep or not torch.allclose(dead(images), net(images))
    return wiring
