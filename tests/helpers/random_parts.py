"""More blocks of random networks: parts of channels, gates and attention; see `random_blocks`."""

import torch
import torch.nn.functional as F
from torch import nn

from helpers.random_blocks import BATCH, CONV, POOL, Chain, block, conv, per_channel


@block("c2f", forms=6, branches=1)
class C2f(nn.Module):
    """Halves, one of which goes on; all side by side."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.hidden = form, 4 if form % 2 else 8
        self.cv1 = conv(dims, width, 2 * self.hidden, 1)
        self.m = Chain(dims, self.hidden, inner[0])
        self.out = 8
        self.cv2 = conv(dims, 2 * self.hidden + self.m.out, 8, 1)

    def forward(self, x):
        y = F.silu(self.cv1(x))
        half = y.shape[1] // 2
        a, b = [
            lambda: y.chunk(2, 1),
            lambda: y.split((self.hidden, self.hidden), 1),
            lambda: torch.split(y, self.hidden, dim=1),
            lambda: (y[:, : self.hidden], y[:, self.hidden :]),
            lambda: (y[:, :half], y[:, half:]),
            lambda: torch.split(y, [half, y.size(1) - half], 1),
        ][self.form]()
        parts = [a, b]
        parts.append(self.m(parts[-1]))
        return self.cv2(torch.cat(parts, 1))


@block("unequal", forms=4)
class Unequal(nn.Module):
    """Parts of different sizes, each with its own layer."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.sizes = form, [4, 8]
        self.first, self.out = conv(dims, width, 12, 1), 8
        self.small, self.large = conv(dims, 4, 4), conv(dims, 8, 8, groups=8)
        self.last = conv(dims, 12, 8, 1)

    def forward(self, x):
        y = self.first(x).tanh()
        a, b = [
            lambda: y.split(self.sizes, 1),
            lambda: torch.split(y, [4, 8], dim=1),
            lambda: (y[:, :4], y[:, 4:]),
            lambda: (y.narrow(1, 0, self.sizes[0]), y.narrow(1, self.sizes[0], self.sizes[1])),
        ][self.form]()
        return self.last(torch.cat([self.small(a), self.large(b)], 1))


@block("res2net", forms=2)
class Res2Net(nn.Module):
    """Each part reads the sum with what the one before it became."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.width, self.form, self.out = 4, form, width
        self.conv1, self.conv3 = conv(dims, width, 16, 1), conv(dims, 16, width, 1)
        self.convs = nn.ModuleList(conv(dims, 4, 4) for _ in range(3))
        self.bns = nn.ModuleList(BATCH[dims](4) for _ in range(3))

    def forward(self, x):
        y = F.relu(self.conv1(x))
        parts = torch.split(y, self.width, 1) if self.form else torch.chunk(y, 4, dim=1)
        outs, part = [], 0
        for i, (layer, norm) in enumerate(zip(self.convs, self.bns, strict=True)):
            part = F.relu(norm(layer(parts[i] if i == 0 else part + parts[i])))
            outs.append(part)
        return self.conv3(torch.cat([*outs, parts[3]], 1)) + x


@block("shuffle", forms=4)
class Shuffle(nn.Module):
    """Channels of groups change places, between grouped convolutions."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.groups, self.out = form, 2 if form < 3 else 4, 8
        self.a = conv(dims, width, 8, 1, groups=1 if form == 1 else self.groups)
        self.norm, self.shuffle = BATCH[dims](8), nn.ChannelShuffle(2)
        self.b = conv(dims, 8, 8, groups=8)
        self.c = conv(dims, 8, 8, 1, groups=self.groups if form else 1)

    def forward(self, x):
        y = F.relu(self.norm(self.a(x)))
        if self.form == 0:
            y = self.shuffle(y)
        elif self.form == 1:
            n, c = y.shape[:2]
            y = (
                y.view(n, self.groups, c // self.groups, *y.shape[2:])
                .transpose(1, 2)
                .contiguous()
                .view(n, -1, *y.shape[2:])
            )
        elif self.form == 2:
            y = y.reshape(y.size(0), 4, 2, *y.shape[2:]).transpose(2, 1).reshape(y.shape)
        else:
            y = torch.transpose(y.unflatten(1, (self.groups, -1)), 1, 2).flatten(1, 2)
        return self.c(self.b(y))


@block("shuffle unit", forms=2)
class ShuffleUnit(nn.Module):
    """One half passes, the other is computed; then both are shuffled."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.out, half = form, width, width // 2
        self.branch = nn.Sequential(
            conv(dims, half, half, 1),
            BATCH[dims](half),
            nn.ReLU(),
            conv(dims, half, half, groups=half),
            conv(dims, half, half, 1),
        )

    def forward(self, x):
        if self.form:
            half = x.shape[1] // 2
            a, b = x[:, :half], x[:, half:]
        else:
            a, b = x.chunk(2, dim=1)
        y = torch.cat((a, self.branch(b)), dim=1)
        n, c, *size = y.size()
        return y.view(n, 2, c // 2, *size).transpose(1, 2).contiguous().view(n, c, *size)


@block("unbind", forms=3)
class Unbind(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.out = form, 8
        self.a = conv(dims, width, 16)

    def forward(self, x):
        y = self.a(x)
        n, c, *size = y.shape
        if self.form == 0:
            a, b = y.view(n, 2, c // 2, *size).unbind(1)
        elif self.form == 1:
            a, b = y.reshape(n, -1, 2, *size).unbind(2)
        else:
            y = y.view(n, 2, -1, *size)
            a, b = y[:, 0], y[:, 1]
        return a.tanh() + b


@block("glu", forms=6)
class Gated(nn.Module):
    """Half of the channels times the other half."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.out, self.width = form, 8, 8
        self.a, self.b = conv(dims, width, 16), conv(dims, 8, 8, 1)

    def forward(self, x):
        y = self.a(x)
        if self.form == 5:
            return self.b(F.glu(y, dim=1))
        a, b = torch.split(y, self.width, 1) if self.form == 3 else y.chunk(2, dim=1)
        gate = [lambda: b, b.sigmoid, lambda: F.gelu(b), lambda: torch.sigmoid(b), b.tanh][self.form]()
        return self.b(a * gate)


@block("nafnet", forms=2)
class NAFNet(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.norm = width, nn.GroupNorm(1, width) if form else BATCH[dims](width)
        self.conv1, self.conv2 = conv(dims, width, 2 * width, 1), conv(dims, 2 * width, 2 * width, groups=2 * width)
        self.sca = nn.Sequential(POOL[dims](1), conv(dims, width, width, 1))
        self.conv3 = conv(dims, width, width, 1)
        self.beta = nn.Parameter(torch.rand(1, width, *[1] * dims) + 0.5)

    def forward(self, x):
        a, b = self.conv2(self.conv1(self.norm(x))).chunk(2, dim=1)
        y = a * b
        return x + self.conv3(y * self.sca(y)) * self.beta


@block("squeeze", forms=4)
class Squeeze(nn.Module):
    """Squeeze and excitation, by layers of two kinds and views."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.dims, self.out = form, dims, 8
        self.a = conv(dims, width, 8)
        linear = form % 2
        self.down, self.up = (
            (nn.Linear(8, 4), nn.Linear(4, 8)) if linear else (conv(dims, 8, 4, 1), conv(dims, 4, 8, 1))
        )
        self.pool = POOL[dims](1)

    def forward(self, x):
        y = F.silu(self.a(x))
        n, c = y.shape[:2]
        if self.form == 0:
            s = self.pool(y)
        elif self.form == 1:
            s = self.pool(y).view(n, c)
        elif self.form == 2:
            s = y.mean(tuple(range(2, y.dim())), keepdim=True)
        else:
            s = y.flatten(2).mean(-1)
        s = torch.sigmoid(self.up(F.relu(self.down(s))))
        if self.form % 2:
            s = s.view(n, c, *[1] * self.dims)
        return y * (s.expand_as(y) if self.form == 1 else s)


@block("spatial", forms=2)
class SpatialAttention(nn.Module):
    """One value per position, of all channels."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.out = form, width
        self.a, self.gate = conv(dims, width, width, 1), conv(dims, 1 + form, 1)

    def forward(self, x):
        x = self.a(x)
        s = x.mean(1, keepdim=True)
        if self.form:
            s = torch.cat([s, x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(self.gate(s))


@block("split attention", forms=2)
class SplitAttention(nn.Module):
    """Two versions of each channel, weighed against each other."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.dims, self.out = form, dims, 8
        self.conv = conv(dims, width, 16, groups=2)
        self.fc1, self.fc2 = conv(dims, 8, 4, 1), conv(dims, 4, 16, 1)

    def forward(self, x):
        y = F.relu(self.conv(x))
        n, c, *size = y.shape
        parts = torch.split(y, c // 2, dim=1) if self.form else y.view(n, 2, c // 2, *size).unbind(1)
        gap = (parts[0] + parts[1]).mean(tuple(range(2, y.dim())), keepdim=True)
        weights = self.fc2(F.relu(self.fc1(gap))).view(n, 2, c // 2, *[1] * self.dims).softmax(1)
        return weights[:, 0] * parts[0] + weights[:, 1] * parts[1]


@block("convnext", forms=2)
class ConvNeXt(nn.Module):
    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.form = width, form
        self.dwconv, self.norm = conv(dims, width, width, groups=width), nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        last = (0, *range(2, x.dim()), 1)
        first = (0, x.dim() - 1, *range(1, x.dim() - 1))
        y = self.norm(self.dwconv(x).permute(*last))
        y = self.fc2(F.gelu(self.fc1(y)))
        return x + (self.gamma * y if self.form else y).permute(first)


@block("attention", forms=6)
class Attention(nn.Module):
    """Over positions, with two heads; queries, keys and values by one layer or three."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.form, self.out, self.dim, self.heads, self.head_dim = form, width, width, 2, width // 2
        self.scale = self.head_dim**-0.5
        self.norm = nn.LayerNorm(width)
        if form == 0:
            self.attn = nn.MultiheadAttention(width, 2, batch_first=True)
        elif form == 5:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        else:
            self.qkv = nn.Linear(width, 3 * width, bias=form < 3)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        y = self.norm(x.flatten(2).transpose(1, 2))
        b, n, c = y.shape
        if self.form == 0:
            y = self.attn(y, y, y, need_weights=False)[0]
        else:
            y = self.attend(*self.split(y, b, n, c))
            y = y.transpose(1, 2).reshape(b, n, self.dim if self.form % 2 else -1)
        return x + self.proj(y).transpose(1, 2).reshape(x.shape)

    def split(self, y, b, n, c):
        """(batch, heads, positions, features) each."""
        if self.form == 5:
            return [layer(y).view(b, n, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v)]
        if self.form == 1:
            return self.qkv(y).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.form == 2:
            qkv = self.qkv(y).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        if self.form == 3:
            return [part.view(b, n, self.heads, self.head_dim).transpose(1, 2) for part in self.qkv(y).chunk(3, -1)]
        parts = self.qkv(y).split(self.dim, dim=2)
        return [part.reshape(b, -1, 2, self.head_dim).permute(0, 2, 1, 3) for part in parts]

    def attend(self, q, k, v):
        if self.form % 2:
            return F.scaled_dot_product_attention(q, k, v)
        return ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1) @ v


def standardised(kind):
    """A convolution whose filters have a mean of zero."""

    class Standard(kind):
        def forward(self, x):
            rest = tuple(range(1, self.weight.dim()))
            weight = self.weight - self.weight.mean(rest, keepdim=True)
            return self._conv_forward(x, weight / (weight.std(rest, keepdim=True) + 1e-5), self.bias)

    return Standard


STANDARD = {dims: standardised(kind) for dims, kind in CONV.items()}


@block("standardised", forms=3)
class Standardised(nn.Module):
    """Filters without their mean, or weight-normed ones."""

    def __init__(self, dims, width, form, inner):
        super().__init__()
        self.out, self.dims = 8, dims
        self.conv = STANDARD[dims](width, 8, 3, padding=1) if form == 0 else conv(dims, width, 8)
        if form == 1:
            nn.utils.parametrizations.weight_norm(self.conv)
        if form == 2:
            nn.utils.parametrizations.spectral_norm(self.conv)
        self.norm = nn.GroupNorm(4, 8)
        self.gain = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x):
        return F.silu(self.norm(self.conv(x))) * per_channel(self.gain, self.dims)
