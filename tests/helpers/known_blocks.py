"""Small blocks after well-known designs, of convolutions and gates; those of attention are in `known_attention`.

Each takes 16 channels of 8×8 maps, gives `out` channels, and is written as such blocks are in public networks.
"""

import torch
import torch.nn.functional as F
from torch import nn

WIDTH = 16


class ConvBN(nn.Module):
    """YOLO's Conv."""

    def __init__(self, a, b, k=1, s=1, g=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(a, b, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(b)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, a, b, shortcut=True):
        super().__init__()
        self.cv1, self.cv2 = ConvBN(a, b // 2, 3), ConvBN(b // 2, b, 3)
        self.add = shortcut and a == b

    def forward(self, x):
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C2f(nn.Module):
    def __init__(self, by_split=False):
        super().__init__()
        self.c, self.out, self.by_split = 12, 16, by_split
        self.cv1, self.cv2 = ConvBN(WIDTH, 2 * self.c), ConvBN(4 * self.c, self.out)
        self.m = nn.ModuleList(Bottleneck(self.c, self.c) for _ in range(2))

    def forward(self, x):
        y = list(self.cv1(x).split((self.c, self.c), 1) if self.by_split else self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.cv1, self.cv2 = 16, ConvBN(WIDTH, 8), ConvBN(32, 16)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class ELAN(nn.Module):
    def __init__(self):
        super().__init__()
        self.cv1, self.cv2, self.cv3, self.cv4 = ConvBN(WIDTH, 8), ConvBN(WIDTH, 8), ConvBN(8, 8, 3), ConvBN(8, 8, 3)
        self.cv5, self.out = ConvBN(32, 16), 16

    def forward(self, x):
        x1, x2 = self.cv1(x), self.cv2(x)
        x3 = self.cv3(x2)
        return self.cv5(torch.cat([x4 := self.cv4(x3), x3, x2, x1], dim=1) if x1 is not None else x4)


class CSP(nn.Module):
    """Cross-stage: one convolution whose halves go two ways."""

    def __init__(self):
        super().__init__()
        self.conv_exp, self.blocks = ConvBN(WIDTH, 24), nn.Sequential(Bottleneck(12, 12), Bottleneck(12, 12))
        self.conv_transition_b, self.conv_transition, self.out = ConvBN(12, 12), ConvBN(24, 16), 16
        self.expand_chs = 24

    def forward(self, x):
        x = self.conv_exp(x)
        xs, xb = x.split(self.expand_chs // 2, dim=1)
        xb = self.conv_transition_b(self.blocks(xb)).contiguous()
        return self.conv_transition(torch.cat([xs, xb], dim=1))


class Res2Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.width, self.scale, self.out = 6, 4, WIDTH
        self.conv1, self.bn1 = nn.Conv2d(WIDTH, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.convs = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1, bias=False) for _ in range(3))
        self.bns = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.conv3, self.bn3 = nn.Conv2d(24, WIDTH, 1, bias=False), nn.BatchNorm2d(WIDTH)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        spx = torch.split(y, self.width, 1)
        spo = []
        sp = spx[0]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            sp = F.relu(bn(conv(sp if i == 0 else sp + spx[i])))
            spo.append(sp)
        spo.append(spx[3])
        return F.relu(self.bn3(self.conv3(torch.cat(spo, 1))) + x)


class ShuffleV2(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = WIDTH
        self.branch2 = nn.Sequential(
            *(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            *(nn.Conv2d(8, 8, 3, 1, 1, bias=False, groups=8), nn.BatchNorm2d(8)),
            *(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
        )

    def forward(self, x):
        x1, x2 = x.chunk(2, dim=1)
        out = torch.cat((x1, self.branch2(x2)), dim=1)
        batchsize, num_channels, height, width = out.size()
        out = out.view(batchsize, 2, num_channels // 2, height, width)
        return torch.transpose(out, 1, 2).contiguous().view(batchsize, num_channels, height, width)


class Ghost(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = self.oup = 24
        self.primary_conv = nn.Sequential(nn.Conv2d(WIDTH, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.cheap_operation = nn.Sequential(
            nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )

    def forward(self, x):
        x1 = self.primary_conv(x)
        x2 = self.cheap_operation(x1)
        return torch.cat([x1, x2], dim=1)[:, : self.oup, :, :]


class Mixed(nn.Module):
    """Mixed convolutions: a kernel size for each part, in a list."""

    def __init__(self):
        super().__init__()
        self.splits, self.out = [12, 12], 24
        self.expand = nn.Conv2d(WIDTH, 24, 1)
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, k, padding=k // 2, groups=12) for k in (3, 5))

    def forward(self, x):
        parts = torch.split(F.relu(self.expand(x)), self.splits, 1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], 1)


class Coordinate(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = WIDTH
        self.pool_h, self.pool_w = nn.AdaptiveAvgPool2d((None, 1)), nn.AdaptiveAvgPool2d((1, None))
        self.conv1, self.bn1, self.act = nn.Conv2d(WIDTH, 8, 1), nn.BatchNorm2d(8), nn.Hardswish()
        self.conv_h, self.conv_w = nn.Conv2d(8, WIDTH, 1), nn.Conv2d(8, WIDTH, 1)

    def forward(self, x):
        _, _, h, w = x.size()
        y = torch.cat([self.pool_h(x), self.pool_w(x).permute(0, 1, 3, 2)], dim=2)
        x_h, x_w = torch.split(self.act(self.bn1(self.conv1(y))), [h, w], dim=2)
        return x * self.conv_w(x_w.permute(0, 1, 3, 2)).sigmoid() * self.conv_h(x_h).sigmoid()


class ECA(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.reduce = 24, nn.Conv2d(WIDTH, 20, 1)
        self.expand = nn.Conv2d(20, 24, 3, padding=1)
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.expand(F.relu(self.reduce(x)))
        y = self.conv(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class CBAM(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.conv = 24, nn.Conv2d(WIDTH, 24, 3, padding=1)
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 24))
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1))

    def forward(self, x):
        x = self.conv(x)
        avg = self.mlp(F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))))
        top = self.mlp(F.max_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))))
        x = x * torch.sigmoid(avg + top).unsqueeze(2).unsqueeze(3).expand_as(x)
        pooled = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


class SE(nn.Module):
    def __init__(self):
        super().__init__()
        self.out, self.conv = 24, nn.Conv2d(WIDTH, 24, 3, padding=1)
        self.fc = nn.Sequential(nn.Linear(24, 8, bias=False), nn.ReLU(), nn.Linear(8, 24, bias=False), nn.Sigmoid())

    def forward(self, x):
        x = self.conv(x)
        b, c, _, _ = x.size()
        return x * self.fc(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)


class SelectiveKernel(nn.Module):
    """Branches of two kernel sizes, weighed against each other."""

    def __init__(self):
        super().__init__()
        self.out, self.num_paths = 20, 2
        self.paths = nn.ModuleList(ConvBN(WIDTH, 20, k) for k in (3, 5))
        self.fc_reduce, self.bn = nn.Conv2d(20, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.fc_select = nn.Conv2d(8, 40, 1, bias=False)

    def forward(self, x):
        x = torch.stack([op(x) for op in self.paths], dim=1)
        attn = x.sum(1).mean((2, 3), keepdim=True)
        attn = self.fc_select(F.relu(self.bn(self.fc_reduce(attn))))
        b, c, h, w = attn.shape
        attn = torch.softmax(attn.view(b, self.num_paths, c // self.num_paths, h, w), dim=1)
        return (x * attn).sum(dim=1)


class SplitAttention(nn.Module):
    """ResNeSt's, of radix 2."""

    def __init__(self):
        super().__init__()
        self.out, self.radix = 20, 2
        self.conv, self.bn0 = nn.Conv2d(WIDTH, 40, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(40)
        self.fc1, self.bn1, self.fc2 = nn.Conv2d(20, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 40, 1)

    def forward(self, x):
        x = F.relu(self.bn0(self.conv(x)))
        b, rc, h, w = x.shape
        x = x.reshape((b, self.radix, rc // self.radix, h, w))
        gap = x.sum(dim=1).mean((2, 3), keepdim=True)
        attn = self.fc2(F.relu(self.bn1(self.fc1(gap))))
        attn = F.softmax(attn.view(b, 1, self.radix, -1).transpose(1, 2), dim=1).reshape(b, -1, 1, 1)
        return (x * attn.reshape((b, self.radix, rc // self.radix, 1, 1))).sum(dim=1)


class UNet(nn.Module):
    """One level; up by a transposed convolution, or by interpolation."""

    def __init__(self, bilinear=False):
        super().__init__()
        self.out, self.bilinear = 16, bilinear
        self.inc = ConvBN(WIDTH, 16, 3)
        self.down = nn.Sequential(nn.MaxPool2d(2), ConvBN(16, 24, 3))
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        if not bilinear:
            self.up = nn.ConvTranspose2d(24, 12, kernel_size=2, stride=2)
        self.conv = ConvBN(40 if bilinear else 28, 16, 3)

    def forward(self, x):
        x1 = self.inc(x)
        x = self.up(self.down(x1))
        dy, dx = x1.size()[2] - x.size()[2], x1.size()[3] - x.size()[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.cat([x1, x], dim=1))


class OSNet(nn.Module):
    """Streams of different depth through one gate."""

    def __init__(self):
        super().__init__()
        self.out = WIDTH
        self.conv1 = ConvBN(WIDTH, 8)
        self.streams = nn.ModuleList(
            nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), ConvBN(8, 8, 3, g=8)) for _ in range(depth)))
            for depth in (1, 2)
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.Sigmoid()
        )
        self.conv3 = ConvBN(8, WIDTH, act=False)

    def forward(self, x):
        x1 = self.conv1(x)
        x2 = 0
        for stream in self.streams:
            y = stream(x1)
            x2 = x2 + y * self.gate(y)
        return F.relu(self.conv3(x2) + x)
