"""Layers derived from torch's: some only set defaults, others have a forward pass of their own."""

import math

import torch
import torch.nn.functional as F
from torch import nn

# Derived layers that only set defaults


class Norm(nn.BatchNorm2d):
    def __init__(self, width):
        super().__init__(width, eps=1e-2, momentum=0.03)


class Conv3(nn.Conv2d):
    def __init__(self, a, b, **options):
        super().__init__(a, b, 3, padding=1, **options)


class Classifier(nn.Linear):
    pass


class Groups(nn.GroupNorm):
    def __init__(self, width):
        super().__init__(4, width)


class Slope(nn.PReLU):
    def __init__(self, width):
        super().__init__(width, 0.3)


# Derived layers with a forward pass of their own


class NormAct(nn.BatchNorm2d):
    """As timm has it."""

    def forward(self, x):
        torch._assert(x.ndim == 4, "expected 4D input")
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var
        return F.relu(F.batch_norm(x, *running, self.weight, self.bias, self.training, self.momentum, self.eps))


class ActingNorm(nn.BatchNorm2d):
    def forward(self, x):
        return F.relu(super().forward(x))


class GroupsAct(nn.GroupNorm):
    def forward(self, x):
        return F.relu(F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps))


class ScaledGroups(nn.GroupNorm):
    """With its number of groups written down."""

    def forward(self, x):
        return F.group_norm(x, 4, self.weight, self.bias, self.eps)


class Gained(nn.BatchNorm2d):
    """A norm with a parameter more than torch's."""

    def __init__(self, width):
        super().__init__(width)
        self.gain_weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return super().forward(x) * self.gain_weight[:, None, None]


class Padded(nn.Conv2d):
    """It pads by the size of its kernel, before a convolution with the groups that it has."""

    def forward(self, x):
        height, width = self.weight.size()[-2:]
        x = F.pad(x, [width // 2, width // 2, height // 2, height // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Padding that depends on the size of the image, as networks made for TensorFlow have it."""

    def forward(self, x):
        sizes = zip(x.shape[2:], self.weight.shape[2:], self.stride, strict=True)
        lost = [max((math.ceil(size / step) - 1) * step + kernel - size, 0) for size, kernel, step in sizes]
        if any(lost):
            x = F.pad(x, [lost[1] // 2, lost[1] - lost[1] // 2, lost[0] // 2, lost[0] - lost[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Depthwise8(nn.Conv2d):
    """With its number of groups written down."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, 1, 1, 1, 8)


class Standardised(nn.Conv2d):
    """Each filter depends on the mean of all of its weights."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class GainedWeights(nn.Conv2d):
    """As NFNets have it, with a gain for each filter."""

    def __init__(self, inputs, filters, kernel):
        super().__init__(inputs, filters, kernel)
        self.gain = nn.Parameter(torch.rand(filters, 1, 1, 1) + 0.5)

    def forward(self, x):
        gain = (self.gain * 0.7).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1)


class Turned(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.flip(0), self.bias, padding=1)


class TurnedInputs(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(x, self.weight.flip(1), self.bias, padding=1)


class Masked(nn.Conv2d):
    """It also reads its weight in another way."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1) * self.weight.abs().max()


class OfWidth(nn.Conv2d):
    """It divides by the number of channels that it reads."""

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1) / self.weight.shape[1]
