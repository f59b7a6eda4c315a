"""Images are laid out channels last for networks that take them so, and only for those."""

import pytest
import torch
from helpers.training import QUIET, digits
from torch import nn

from norton.training import Recipe, evaluate, fit
from norton.training.layout import takes_channels_last


class Spy(nn.Module):
    """Remembers whether images came channels last; flattens as it is told while training, and while not."""

    def __init__(self, training="reshape", evaluation="reshape"):
        super().__init__()
        self.how = {True: training, False: evaluation}
        self.seen = set()
        layers = [nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Dropout(0.1)]
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(36, 10)

    def forward(self, x):
        self.seen.add((self.training, x.is_contiguous(memory_format=torch.channels_last)))
        y = self.body(x)
        return self.fc(getattr(y, self.how[self.training])(len(y), -1))


@pytest.mark.parametrize("training, evaluation", [
    ("reshape", "reshape"),
    ("view", "view"),
    ("view", "reshape"),  # as with an auxiliary head, which training alone has
])  # fmt: skip
def test_each_network_gets_what_it_takes(training, evaluation):
    torch.manual_seed(0)
    net = Spy(training, evaluation)
    images, before = torch.rand(2, 3, 8, 8), {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert takes_channels_last(net, images, (True,)) == (training == "reshape")
    assert takes_channels_last(net, images, (False,)) == (evaluation == "reshape")
    assert torch.equal(state, torch.get_rng_state()) and net.training and not net.seen
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class Shared(Spy):
    """Of which copies write into the same set."""

    def __deepcopy__(self, memo):
        made = Shared(*self.how.values())
        made.load_state_dict(self.state_dict())
        made.train(self.training)
        made.seen = self.seen
        return made


@pytest.mark.parametrize("how, last", [("reshape", True), ("view", False)])
def test_training_and_measuring_lay_images_out(how, last, tmp_path):
    torch.manual_seed(0)
    net = Shared(how, how)
    trained = fit(net, digits(), Recipe(epochs=1, learning_rate=0.1), folder=tmp_path, limit_train_batches=20, **QUIET)
    tried = {(mode, True) for mode in (True, False)}
    assert net.seen - tried == (set() if last else {(True, False), (False, False)})
    net.seen.clear()
    found = evaluate(trained, digits(), **QUIET)
    assert net.seen - {(False, True)} == (set() if last else {(False, False)})
    plain = digits().labelled("test", len(digits().splits.test))
    with torch.no_grad():
        literal = 100 * (trained(plain[0]).argmax(1) == plain[1]).double().mean().item()
    assert found["top1"] == pytest.approx(literal, abs=0.11)  # one image whose two best logits are next to equal
