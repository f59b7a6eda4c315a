"""Numbers repeated for all channels, and zeros of as many channels: they follow, whoever counts them."""

import pytest
import torch
from helpers.between import Between, wiring_of_exact
from torch import nn


class Gated(Between):
    """What the first convolution writes, with a gate of one channel."""

    def __init__(self, apply):
        super().__init__(lambda net, x: apply(net, x, net.gate(x).sigmoid()), gate=nn.Conv2d(16, 1, 1))
        self.channels = 16


REPEATED = {
    "to a size": lambda n, x, gate: x * gate.expand(x.size()),
    "to a number of channels": lambda n, x, gate: x * gate.expand(-1, x.size(1), -1, -1),
    "as often as there are channels": lambda n, x, gate: x * gate.repeat(1, x.shape[1], 1, 1),
    "as tiles": lambda n, x, gate: x * gate.tile((1, x.shape[1], 1, 1)),
    "to a shape": lambda n, x, gate: x * torch.broadcast_to(gate, x.shape),
    "to a common shape": lambda n, x, gate: torch.mul(*torch.broadcast_tensors(x, gate)),
    "as another one": lambda n, x, gate: x * gate.expand_as(x),
    "to a number of the module": lambda n, x, gate: x * gate.expand(-1, n.channels, -1, -1),
    "as often as the module says": lambda n, x, gate: x * gate.repeat(1, n.channels, 1, 1),
    "before it is a gate": lambda n, x, gate: x * gate.expand(x.shape).tanh(),
    "and negated": lambda n, x, gate: x * (1 - gate.expand(x.shape)),
    "of a sum over channels": lambda n, x, gate: x * x.sum(1, keepdim=True).expand(x.size()),
    "of a mean over positions": lambda n, x, gate: x * x.mean((2, 3), keepdim=True).expand(x.size()),
}


@pytest.mark.parametrize("what", REPEATED)
def test_repeated(what):
    whole = wiring_of_exact(lambda: Gated(REPEATED[what])).left_whole
    assert "first" not in whole
    assert whole["gate"].endswith(("it is repeated for all channels of another tensor", "something unseen may"))


WHOLE = {
    "as often as is written down": (lambda n, x, gate: x * gate.expand(-1, 16, -1, -1), "meet a single one"),
    "and read by itself": (lambda n, x, gate: gate.expand(x.size()), "is read by itself"),
    "as another one, and read": (lambda n, x, gate: gate.expand_as(x), "is read by itself"),
    "with an offset, and read": (lambda n, x, gate: gate.expand(x.size()) + 1, "is read by itself"),
    "as another one, times a number, and read": (lambda n, x, gate: 2 * gate.expand_as(x), "is read by itself"),
}


@pytest.mark.parametrize("what", WHOLE)
def test_left_whole(what):
    apply, reason = WHOLE[what]
    assert reason in wiring_of_exact(lambda: Gated(apply)).left_whole["first"]


class Cell(nn.Module):
    """A convolutional LSTM, with its first state of zeros."""

    def __init__(self, inputs, hidden, parts, state):
        super().__init__()
        self.hidden_dim, self.parts, self.state = hidden, parts, state
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, 3, padding=1)

    def forward(self, x):
        hidden = memory = self.state(self, x)
        for _ in range(2):
            put, stay, give, new = self.parts(self, self.conv(torch.cat([x, hidden], 1)))
            memory = stay.sigmoid() * memory + put.sigmoid() * new.tanh()
            hidden = give.sigmoid() * memory.tanh()
        return hidden


STATES = {
    "torch.zeros": lambda n, x: torch.zeros(len(x), n.hidden_dim, *x.shape[2:], dtype=x.dtype, device=x.device),
    "torch.zeros of a tuple": lambda n, x: torch.zeros((len(x), n.hidden_dim, *x.shape[2:]), dtype=x.dtype),
    "new_zeros": lambda n, x: x.new_zeros(len(x), n.hidden_dim, *x.shape[2:]),
}
PARTS = {
    "split": lambda n, x: torch.split(x, n.hidden_dim, dim=1),
    "chunk": lambda n, x: x.chunk(4, 1),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("state", STATES)
def test_loops_with_a_state_of_zeros(state, parts):
    wiring = wiring_of_exact(
        lambda: Between(lambda n, x: n.cell(x), cell=Cell(16, 12, PARTS[parts], STATES[state]), read=12), cuts=2
    )
    assert not {"first", "cell.conv"} & set(wiring.left_whole)


STEPS = {
    "two halves": (lambda n, x: torch.cat([x[:, ::2], x[:, 1::2]], 1), 16),
    "a product of both": (lambda n, x: x[:, ::2] * x[:, 1::2], 8),
    "the last of four": (lambda n, x: x[:, 3::4], 4),
}


@pytest.mark.parametrize("what", STEPS)
def test_slices_with_a_step(what):
    between, read = STEPS[what]
    assert "first" not in wiring_of_exact(lambda: Between(between, read=read)).left_whole
