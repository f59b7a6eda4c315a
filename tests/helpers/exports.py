"""A network of what exporting has to get right."""

import torch
import torch.nn.functional as F
from torch import nn


class Branching(nn.Module):
    """Stride, dilation, unequal padding, groups, a sum, a concatenation, poolings and a BatchNorm that cannot fold."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.last = nn.BatchNorm2d(14)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(14, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(x + self.relu(self.conv(x)), 2)
        x = self.last(torch.cat([x, F.avg_pool2d(self.grouped(x), 3, 1, 1)], 1))
        return self.fc(self.pool(x.relu()).flatten(1))


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
