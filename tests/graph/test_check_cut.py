"""The very cut that is to be made is tried before it is made: what fits in trial cuts may be chance."""

import pytest
from helpers.hand_made import Net, layers
from torch import nn

import norton

pytestmark = pytest.mark.quick


class Fragile(nn.ReLU):
    """It fails at one width, of which no trial cut knows."""

    def __init__(self):
        super().__init__()
        self.never = set()

    def forward(self, x):
        if int(x.shape[1]) in self.never:
            raise RuntimeError("never so many")
        return super().forward(x)


def test_a_cut_that_no_trial_made_is_tried():
    net = Net(lambda m, x: m.fc(m.b(m.act(m.a(x))).mean((2, 3))), **layers(act=Fragile()))
    one = norton.PruneOptions(min_filters=1)
    for width in range(1, 8):
        rate = 1 - (width + 0.5) / 8
        small = norton.prune(net, {"a": rate}, "l2", options=one)
        assert small.a.out_channels == width
        net.act.never = {width}
        if norton.wiring_of(net).axis_of("a") not in norton.wiring_of(net).frozen:  # no trial cut leaves so many
            with pytest.raises(norton.InputError, match=r"at these widths .*never so many.*compress_rate="):
                norton.prune(net, {"a": rate}, "l2", options=one)
            return
        net.act.never = set()
    pytest.fail("trial cuts leave any number")
