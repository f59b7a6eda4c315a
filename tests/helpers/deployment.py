"""A network with every neighbourhood that folding has to tell apart."""

import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    """Convolutions with and without BatchNorm, one that is read twice, a pre-activation, a shared layer."""

    input_size = (3, 8, 8)

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.shared, self.norm3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.norm4 = nn.BatchNorm2d(8, affine=False)
        self.drop = nn.Dropout(0.5)
        self.hidden, self.norm5, self.last = nn.Linear(128, 16), nn.BatchNorm1d(16), nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm1(self.first(x)))
        y = self.second(x)
        x = F.relu(self.norm2(y)) + y  # what follows `second` is not BatchNorm alone
        x = F.relu(self.norm3(self.shared(x)))
        x = F.relu(self.norm4(self.shared(x)))
        x = F.max_pool2d(x, 2)
        x = x.view(x.shape[0], -1)
        return self.last(self.drop(F.relu(self.norm5(self.hidden(x)))))


def close(found, wanted):
    error = (found - wanted).abs().max() / wanted.abs().max()
    assert error < 1e-4, error


def norms(net):
    return [name for name, layer in net.named_modules() if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)]
