"""Blocks of random networks, each written as people write them.

A block is made for a network of `dims` dimensions (1 to 3) and an input of `width` channels, a multiple of 4; `form`
says which of several ways of writing it is meant, `inner` are blocks inside of it, made one after another.  `out` is
the number of channels that it gives, a multiple of 4 too; maps keep their size.
"""

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {}  # name → class
FORMS = {}  # name → number of forms
BRANCHES = {}  # name → number of lists of inner blocks
DIMS = {}  # name → dimensions of networks that may have it

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
POOL = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def block(name, forms=1, branches=0, dims=(1, 2, 3)):
    """Register a class as a block."""

    def register(kind):
        BLOCKS[name], FORMS[name], BRANCHES[name], DIMS[name] = kind, forms, branches, dims
        return kind

    return register


def conv(dims, a, b, kernel=3, **options):
    return CONV[dims](a, b, kernel, padding=kernel // 2, **options)


def size_of(x):
    return x.shape[2:]


def per_channel(scale, dims):
    return scale.view(1, -1, *[1] * dims)


class Chain(nn.Sequential):
    """Inner blocks; (name, form, inner blocks) each."""

    def __init__(self, dims, width, specs):
        layers = []
        for name, form, inner in specs:
            layers.append(BLOCKS[name](dims, width, form, inner))
            width = layers[-1].out
        super().__init__(*layers)
        self.out = width


@block("conv", forms=8)
class ConvNormAct(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out = (8, 4, 12, 8)[form % 4]
        groups = (1, 2, 4, 1)[form // 2]
        self.conv = conv(dims, width, self.out, (3, 1)[form % 2], groups=groups, bias=form % 3 == 0)
        self.norm = BATCH[dims](self.out) if form != 3 else nn.Identity()
        self.act = nn.ReLU(inplace=True) if form % 2 else nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x)))


@block("depthwise", forms=2)
class DepthwiseSeparable(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out = 8
        self.depthwise = conv(dims, width, width * (1 + form), groups=width, bias=False)
        self.norm = BATCH[dims](width * (1 + form))
        self.pointwise = conv(dims, width * (1 + form), self.out, 1)

    def forward(self, x):
        return self.pointwise(F.relu6(self.norm(self.depthwise(x))))


@block("inverted", forms=2)
class InvertedResidual(nn.Module):
    """MobileNet's, with a stochastic depth that looks at the number of dimensions."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.drop = width, 0.1 * form
        self.body = nn.Sequential(
            conv(dims, width, 2 * width, 1, bias=False),
            BATCH[dims](2 * width),
            nn.ReLU6(),
            conv(dims, 2 * width, 2 * width, groups=2 * width, bias=False),
            BATCH[dims](2 * width),
            nn.ReLU6(),
            conv(dims, 2 * width, width, 1, bias=False),
            BATCH[dims](width),
        )

    def forward(self, x):
        y = self.body(x)
        if self.drop and self.training:
            keep = torch.rand((y.shape[0],) + (1,) * (y.ndim - 1), dtype=y.dtype, device=y.device) > self.drop
            y = y * keep / (1 - self.drop)
        return x + y


@block("transposed", forms=4)
class Up(nn.Module):
    """Twice as large, and back."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, groups = (8, 4)[form % 2], (1, 2)[form // 2]
        self.up = TRANSPOSED[dims](width, self.out, (2, 4)[form % 2], 2, form % 2, groups=groups, bias=form < 2)
        self.norm = BATCH[dims](self.out)
        self.down = conv(dims, self.out, self.out, stride=2)

    def forward(self, x):
        return self.down(F.leaky_relu(self.norm(self.up(x)), 0.2))


@block("norm", forms=11)
class Norm(nn.Module):
    """Norms and scales alone."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.form, self.dims = width, form, dims
        self.before = conv(dims, width, width, 1)
        self.norm = [
            lambda: BATCH[dims](width),
            lambda: INSTANCE[dims](width, affine=True),
            lambda: INSTANCE[dims](width),
            lambda: nn.GroupNorm(2, width),
            lambda: nn.GroupNorm(width // 2, width),
            lambda: nn.GroupNorm(1, width),
            lambda: nn.PReLU(width),
            lambda: nn.LayerNorm(width),
            nn.Identity,
            nn.Identity,
            nn.Identity,
        ][form]()
        if form > 7:
            self.gamma = nn.Parameter(torch.rand(width) + 0.5)
            self.beta = nn.Parameter(torch.rand(width) - 0.5)

    def forward(self, x):
        x = self.before(x)
        gamma, beta = (per_channel(p, self.dims) for p in (self.gamma, self.beta)) if self.form > 7 else (None, None)
        if self.form == 7:
            return self.norm(x.movedim(1, -1)).movedim(-1, 1)
        if self.form == 8:  # over channels, written out; beside it x, for one channel alone is its mean
            mean = x.mean(1, keepdim=True)
            var = (x - mean).pow(2).mean(1, keepdim=True)
            return x + gamma * ((x - mean) / torch.sqrt(var + 1e-6)) + beta
        if self.form == 9:  # responses of channels, relative to their mean
            size = x.flatten(2).norm(dim=2)
            relative = size / (size.mean(dim=1, keepdim=True) + 1e-6)
            return gamma * (x * relative.view(*relative.shape, *[1] * self.dims)) + beta + x
        if self.form == 10:  # length of the vector of channels
            return x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-6) * gamma
        return self.norm(x)


@block("residual", forms=4, branches=1)
class Residual(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.body = Chain(dims, width, inner[0])
        self.form, self.out = form, width if form < 2 else self.body.out
        self.project = conv(dims, self.body.out, width, 1) if form < 2 else nn.Identity()
        self.shortcut = nn.Identity() if form < 2 else conv(dims, width, self.out, 1)
        self.scale = nn.Parameter(torch.rand(self.out, *[1] * dims) + 0.5) if form in (1, 2) else None

    def forward(self, x):
        y = self.project(self.body(x))
        if self.scale is not None:
            y = self.scale * y
        if self.form == 3:
            y = y + 0  # a new tensor
            y += self.shortcut(x)
            return y
        return self.shortcut(x) + y


@block("concat", forms=3, branches=2)
class Concat(nn.Module):
    """Branches side by side; with the input itself, and one of them twice."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.a, self.b = (Chain(dims, width, specs) for specs in inner)
        self.form = form
        self.out = self.a.out + self.b.out + (0, width, self.a.out)[form]

    def forward(self, x):
        a, b = self.a(x), self.b(x)
        return torch.cat([[a, b], [x, a, b], [a, b, a]][self.form], dim=1)


@block("dense", forms=2)
class Dense(nn.Module):
    """Each layer reads what all before it wrote."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.layers = nn.ModuleList(conv(dims, width + 4 * i, 4) for i in range(2 + form))
        self.out = width + 4 * len(self.layers)

    def forward(self, x):
        features = [x]
        for layer in self.layers:
            features.append(F.elu(layer(torch.cat(features, 1))))
        return torch.cat(features, 1)


@block("shared", forms=3)
class Shared(nn.Module):
    """Modules called twice."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.form = width, form
        self.first, self.again = conv(dims, width, width, 1), conv(dims, width, width)
        self.norm = BATCH[dims](width)

    def forward(self, x):
        x = self.first(x)
        if self.form == 0:
            for _ in range(2):
                x = F.silu(self.norm(self.again(x)))
            return x
        if self.form == 1:
            return self.again(x).tanh() + self.again(self.norm(x))
        return x + self.norm(self.again(x)) * self.norm(self.first(x))


@block("optional", forms=2)
class Optional(nn.Module):
    """Arguments that are given or left at their defaults."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.form = width, form
        self.a, self.b = conv(dims, width, 8), conv(dims, 8, width)

    def run(self, x, skip=None, gain=1.0, activate=True):
        y = self.a(x)
        if activate:
            y = F.gelu(y)
        y = self.b(y) * gain
        return y if skip is None else y + skip

    def forward(self, x):
        return self.run(x, skip=x, gain=0.5) if self.form else self.run(x, activate=False)


@block("linear", forms=4)
class LinearMaps(nn.Module):
    """Maps to features by a linear layer and back, at half a dozen positions."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.dims, self.out = form, dims, 4
        self.side = (2,) * dims
        self.fc1 = nn.Linear(width * 2**dims, 8)
        self.fc2 = nn.Linear(8, self.out * 2**dims)

    def forward(self, x):
        y = F.interpolate(x, self.side) if self.form % 2 else POOL[self.dims](2)(x)
        y = torch.flatten(y, 1) if self.form < 2 else y.reshape(y.shape[0], -1)
        y = self.fc2(self.fc1(y).tanh())
        if self.form == 0:
            y = y.view(-1, 4, *self.side)
        elif self.form == 1:
            y = y.unflatten(1, (self.out, *self.side))
        elif self.form == 2:
            y = y.reshape(y.size(0), self.out, *self.side)
        else:
            y = y.view(y.size(0), -1, *self.side)
        return F.interpolate(y, size=x.shape[2:], mode="nearest")


@block("pixels", forms=2, dims=(2,))
class Pixels(nn.Module):
    """Channels become positions, and positions channels."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.form = 8, form
        self.a, self.b = nn.Conv2d(width, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.up, self.down = nn.PixelShuffle(2), nn.PixelUnshuffle(2)

    def forward(self, x):
        y = F.gelu(self.a(x))
        y = self.down(self.up(y) if self.form else F.pixel_shuffle(y, 2))
        return self.b(y)


@block("unet", forms=2, branches=1)
class Skip(nn.Module):
    """Down, inner blocks, up again, and beside it what was there before."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.down = conv(dims, width, 8, stride=2)
        self.body = Chain(dims, 8, inner[0])
        self.up = TRANSPOSED[dims](self.body.out, 8, 2, 2) if form else conv(dims, self.body.out, 8, 1)
        self.form, self.out = form, 8 + width

    def forward(self, x):
        y = self.up(self.body(F.relu(self.down(x))))
        if not self.form:
            y = F.interpolate(y, scale_factor=2)
        return torch.cat((y, x), dim=1)
