"""Small networks and blocks after well-known designs, see `known_blocks`: restoration, sequences, attention."""

import torch
import torch.nn.functional as F
from torch import nn

from helpers.known_blocks import WIDTH, ConvBN

OLD_WEIGHT_NORM = nn.utils.weight_norm  # which torch calls deprecated


class L2Norm(nn.Module):
    """SSD's, with a scale per channel."""

    def __init__(self):
        super().__init__()
        self.out, self.conv = 20, nn.Conv2d(WIDTH, 20, 3, padding=1)
        self.weight = nn.Parameter(torch.full((20,), 2.0))

    def forward(self, x):
        x = F.relu(self.conv(x))
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-10
        x = torch.div(x, norm)
        return self.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3).expand_as(x) * x


class SuperResolution(nn.Module):
    """Residual blocks, then channels become pixels; the sum with the image goes up too."""

    def __init__(self):
        super().__init__()
        self.out, self.conv1, self.conv2 = 12, nn.Conv2d(WIDTH, 24, 3, padding=1), nn.Conv2d(24, WIDTH, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(WIDTH, 48, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())

    def forward(self, x):
        return self.up(x + self.conv2(F.relu(self.conv1(x))) * 0.1)


class SimpleGate(nn.Module):
    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        return x1 * x2


class LayerNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), 1e-6

    def forward(self, x):
        mu = x.mean(1, keepdim=True)
        var = (x - mu).pow(2).mean(1, keepdim=True)
        y = (x - mu) / (var + self.eps).sqrt()
        return self.weight[:, None, None] * y + self.bias[:, None, None]


class NAFNet(nn.Module):
    def __init__(self, normed=True):
        super().__init__()
        c, self.out = WIDTH, WIDTH
        self.norm1, self.norm2 = (LayerNorm2d(c), LayerNorm2d(c)) if normed else (nn.BatchNorm2d(c), nn.BatchNorm2d(c))
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.sg, self.conv3 = SimpleGate(), nn.Conv2d(c, c, 1)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv4, self.conv5 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.beta, self.gamma = nn.Parameter(torch.ones(1, c, 1, 1)), nn.Parameter(torch.ones(1, c, 1, 1))

    def forward(self, inp):
        x = self.sg(self.conv2(self.conv1(self.norm1(inp))))
        y = inp + self.conv3(x * self.sca(x)) * self.beta
        return y + self.conv5(self.sg(self.conv4(self.norm2(y)))) * self.gamma


class ConvLSTM(nn.Module):
    """Gates of one convolution, over a few steps."""

    def __init__(self):
        super().__init__()
        self.out, self.hidden_dim, self.steps = 12, 12, 3
        self.conv = nn.Conv2d(WIDTH + 12, 48, 3, padding=1)

    def forward(self, x):
        b, _, height, width = x.shape
        h = x.new_zeros(b, self.hidden_dim, height, width)
        c = torch.zeros_like(h)
        for _ in range(self.steps):
            i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden_dim, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h


class GRN(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, 1, 1, dim)), nn.Parameter(torch.zeros(1, 1, 1, dim))

    def forward(self, x):
        gx = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        nx = gx / (gx.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * nx) + self.beta + x


class ConvNeXt(nn.Module):
    def __init__(self, second=False):
        super().__init__()
        self.out, self.dwconv, self.norm = WIDTH, nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH), nn.LayerNorm(16)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH)
        self.grn = GRN(48) if second else nn.Identity()
        self.gamma = None if second else nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(self.grn(self.act(self.pwconv1(y))))
        if self.gamma is not None:
            y = self.gamma * y
        return x + y.permute(0, 3, 1, 2)


class StdConv2d(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        v, m = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, unbiased=False)
        w = (w - m) / torch.sqrt(v + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Standardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.a, self.norm = 16, StdConv2d(WIDTH, 24, 3, padding=1), nn.GroupNorm(8, 24)
        self.b = StdConv2d(24, 16, 3, padding=1)

    def forward(self, x):
        return self.b(F.relu(self.norm(self.a(x))))


class WeightNormed(nn.Module):
    """Torch's weight norm in its two forms, as super-resolution and audio have it."""

    def __init__(self):
        super().__init__()
        self.out = 16
        self.a = nn.utils.parametrizations.weight_norm(nn.Conv2d(WIDTH, 24, 3, padding=1))
        self.b = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(24, 20, 3, padding=1))
        self.c = OLD_WEIGHT_NORM(nn.Conv2d(20, 16, 3, padding=1))

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class RepVGG(nn.Module):
    """Branches of a block before they are one convolution."""

    def __init__(self):
        super().__init__()
        self.out = WIDTH
        self.rbr_identity = nn.BatchNorm2d(WIDTH)
        self.rbr_dense = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH))

    def forward(self, x):
        return F.relu(self.rbr_dense(x) + self.rbr_1x1(x) + self.rbr_identity(x))


class MobileOne(nn.Module):
    """Several branches of one kind, depthwise, then pointwise."""

    def __init__(self):
        super().__init__()
        self.out, self.skip = 24, nn.BatchNorm2d(WIDTH)
        self.dw = nn.ModuleList(ConvBN(WIDTH, WIDTH, 3, g=WIDTH, act=False) for _ in range(2))
        self.dw_scale, self.pw = (
            ConvBN(WIDTH, WIDTH, 1, g=WIDTH, act=False),
            nn.ModuleList(ConvBN(WIDTH, 24) for _ in range(2)),
        )

    def forward(self, x):
        y = self.skip(x) + self.dw_scale(x)
        for branch in self.dw:
            y += branch(x)
        y = F.relu(y)
        z = 0
        for branch in self.pw:
            z += branch(y)
        return z


class Recurrent(nn.Module):
    """Columns of maps as a sequence, as text recognition has it."""

    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.out, self.cnn = 6, nn.Sequential(nn.Conv2d(WIDTH, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.rnn, self.fc = kind(24, 8, bidirectional=True, batch_first=True), nn.Linear(16, 6)

    def forward(self, x):
        x = self.cnn(x).mean(2).permute(0, 2, 1)
        return self.fc(self.rnn(x)[0]).permute(0, 2, 1).unsqueeze(2)


class FeedForward(nn.Module):
    def __init__(self, dim=WIDTH, gated=False):
        super().__init__()
        self.gated, self.fc1, self.fc2 = gated, nn.Linear(dim, 48 if gated else 24), nn.Linear(24, dim)

    def forward(self, x):
        x = self.fc1(x)
        if self.gated:
            x, gate = x.chunk(2, dim=-1)
            return self.fc2(x * F.gelu(gate))
        return self.fc2(F.gelu(x))


class SelfAttention(nn.Module):
    """Of a ViT: one linear layer for queries, keys and values."""

    def __init__(self, dim=WIDTH, fused=False):
        super().__init__()
        self.num_heads, self.head_dim, self.scale, self.fused = 4, dim // 4, (dim // 4) ** -0.5, fused
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, -1))


class ByHand(nn.Module):
    """As with einops: heads in front of features, three linear layers, and products by einsum."""

    def __init__(self, dim=WIDTH):
        super().__init__()
        self.heads, self.to_q, self.to_kv, self.to_out = 4, nn.Linear(dim, 32), nn.Linear(dim, 64), nn.Linear(32, dim)

    def rearrange(self, x):
        b, n, _ = x.shape
        return x.reshape(b, n, self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x):
        q, k, v = (self.rearrange(part) for part in (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1)))
        attn = (torch.einsum("bhid,bhjd->bhij", q, k) * 8**-0.5).softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return self.to_out(out.permute(0, 2, 1, 3).flatten(2))


class OfTorch(nn.Module):
    def __init__(self, dim=WIDTH):
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, 4, batch_first=True)

    def forward(self, x):
        return self.attn(x, x, x, need_weights=False)[0]


class Transformer(nn.Module):
    """Maps as tokens, through attention and a feed-forward layer, and back."""

    def __init__(self, attention, gated=False):
        super().__init__()
        self.out, self.attn, self.mlp = WIDTH, attention, FeedForward(gated=gated)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.pos_embed = nn.Parameter(torch.rand(1, 64, WIDTH))

    def forward(self, x):
        b, _, h, w = x.shape
        x = x.flatten(2).transpose(1, 2) + self.pos_embed
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).reshape(b, -1, h, w)


class Window(nn.Module):
    """Swin's attention in windows, shifted, channels last."""

    def __init__(self, shift=2):
        super().__init__()
        self.out, self.size, self.shift = WIDTH, 4, shift
        self.norm, self.attn, self.mlp = nn.LayerNorm(WIDTH), SelfAttention(), FeedForward()

    def forward(self, x):
        shortcut = x = x.permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = torch.roll(self.norm(x), shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = x.view(b, h // self.size, self.size, w // self.size, self.size, c)
        windows = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.size * self.size, c)
        x = self.attn(windows).view(b, h // self.size, w // self.size, self.size, self.size, -1)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, h, w, -1)
        x = shortcut + torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)
