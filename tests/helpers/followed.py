"""Networks made of derived layers, of layers called as functions, and of operations that move channels about."""

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from helpers.derived_layers import (
    ActingNorm,
    Classifier,
    Conv3,
    Depthwise8,
    Gained,
    GainedWeights,
    Groups,
    GroupsAct,
    Masked,
    Norm,
    NormAct,
    OfWidth,
    Padded,
    Same,
    ScaledGroups,
    Slope,
    Standardised,
    Turned,
    TurnedInputs,
)
from helpers.hand_made import Net, buffered, conv, layers, scale

# Forward passes


def plain(m, x):
    return m.fc(m.b(m.a(x).relu()).mean([2, 3]))


def normed(m, x):
    return m.fc(m.b(m.n(m.a(x)).relu()).relu().mean([2, 3]))


def as_functions(m, x):
    n, g = m.n, m.g
    y = F.conv2d(x, m.a.weight, m.a.bias, padding=1)
    y = F.prelu(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, m.training, 0.1, n.eps), m.p.weight)
    y = F.group_norm(F.conv2d(y, m.b.weight, None, padding=1), g.num_groups, g.weight, g.bias)
    return F.linear(F.instance_norm(F.relu(y)).square().mean((2, 3)), m.fc.weight, m.fc.bias)


def concatenated_norm(m, x):
    y = m.a(x)
    return m.fc(m.n(torch.cat([y, m.b(y), y], 1)).mean((2, 3)))


def concatenated_read(m, x):
    y = m.a(x)
    return m.fc(m.c(torch.cat([y, m.b(y)], 1)).mean((2, 3)))


def by_own_parameters(m, x):
    return m.fc(m.b(F.batch_norm(m.a(x), m.running_mean, m.running_var, m.scale)).relu().mean((2, 3)))


def coordinates(m, x):
    y = m.a(x).relu()
    n, _, h, w = y.shape
    rows = torch.linspace(-1, 1, h, dtype=y.dtype, device=y.device).view(1, 1, h, 1).expand(n, 1, h, w)
    return m.fc(m.b(torch.cat([y, rows.to(y).type_as(y)], 1)).mean((2, 3)))


def dropped_path(m, x):
    y = m.a(x)
    keep = y.new_empty((y.shape[0],) + (1,) * (y.ndim - 1)).fill_(0.5)
    return m.fc((y + m.b(y) * keep.div_(0.9)).relu().mean((2, 3)))


def noisy(m, x):
    y = m.a(x)
    return m.fc(m.b(y + torch.ones_like(y) * y.data).mean((2, 3)))


def new_of_the_same_width(m, x):
    y = m.a(x)
    return m.fc(m.b(y + y.new_ones(y.shape[0], y.shape[1], 1, 1)).mean((2, 3)))


def coordinate_attention(m, x):
    y = m.a(x).relu()
    h, w = y.size()[2:]
    rows, columns = y.mean(3, keepdim=True), y.mean(2, keepdim=True).permute(0, 1, 3, 2)
    rows, columns = torch.split(m.b(torch.cat([rows, columns], 2)).relu(), [h, w], dim=2)
    return m.fc((y * m.c(rows).sigmoid() * m.d(columns.permute(0, 1, 3, 2)).sigmoid()).mean((2, 3)))


def rows_one_by_one(m, x):
    y = m.a(x).relu()
    first, second = y.chunk(2, dim=2)
    above = y.unbind(2)[:2][0]
    return m.fc(m.b(first - second).amax((2, 3)) + m.c(above[:, :, None]).amax((2, 3)))


def halves(m, x):
    first, second = m.a(x).chunk(2, 1)
    return m.fc(m.b(first * second).mean((2, 3)))


@functools.cache
def half(size):
    return size // 2


def halves_remembered(m, x):
    y = m.a(x)
    return m.fc(m.b(y.view(len(y), 2, half(y.shape[1]), *y.shape[2:]).sum(1)).mean((2, 3)))


def in_parts(m, x):
    first, second, third = m.a(x).split(m.part, 1)
    return m.fc(m.b(torch.cat([second, third, first], 1)).mean((2, 3)))


def joined_rows_of_two(m, x):
    return m.fc(m.c(torch.cat([m.a(x), m.b(x)], 2)).relu().mean((2, 3)))


def scaled_to_unit_length(m, x):
    y = F.normalize(m.a(x).relu())
    y = y / (y.pow(2).sum(1, keepdim=True).sqrt() + 1e-3) + y / (1 + torch.norm(y, p=2, dim=1).unsqueeze(1))
    return m.fc(m.b(m.scale.view(1, -1, 1, 1) * y).mean((2, 3)))


def deviation(m, x):
    y = m.a(x)
    return m.fc(m.b(y / y.std(1, keepdim=True)).mean((2, 3)))


def through_transposed(m, x):
    return m.fc(m.c(m.t(m.a(x).relu()).relu()).mean((2, 3)))


def listed_rows(m, x):
    rows = list(m.a(x).relu().chunk(2, 2))
    rows.extend(m.b(row) for row in rows[:1])
    for row in rows[1].unbind(3)[:2]:
        rows.append(row[..., None].expand(-1, -1, -1, 16))
    return m.fc(torch.cat(rows, 2).amax((2, 3)))


def deciding_by_sizes(m, x):
    y = m.a(x)
    if y.shape[2] > 8 and len(y.shape) == 4:
        y = F.max_pool2d(y, 2)
    for _ in range(y.shape[3] // 4):
        y = 2 * y.relu()
    return m.fc(m.b(y).mean((2, 3)))


def joining_small_ones(m, x):
    y, z = m.a(x), m.c(x)
    return m.fc((m.b(y) + m.d(z) + (m.b(y + z) if x.shape[2] < 40 else 0)).relu().mean((2, 3)))


def unbatched(m, x):
    y = m.b(m.a(x[0]).relu())
    return m.fc(y.sum((1, 2)))[None]


def deciding_by_channels(m, x):
    y = m.a(x)
    return m.fc(m.b(y if y.shape[1] > 6 else y.relu()).mean((2, 3)))


def as_many_as_channels(m, x):
    y, z = m.a(x), 0
    for _ in range(y.shape[1]):
        z = z + 1
    return m.fc(m.b(y * z).mean((2, 3)))


def all_of_them(m, x):
    return m.fc(m.b(m.a(x)[:, :8].relu())[:, 0:100].mean((2, 3)))


def normalised_over_channels(m, x):
    y = F.layer_norm(m.a(x).permute(0, 2, 3, 1), (8,), m.n.weight, m.n.bias).permute(0, 3, 1, 2)
    return m.fc(m.b(y).mean((2, 3)))


def normalised_over_its_channels(m, x):
    y = F.layer_norm(m.a(x).permute(0, 2, 3, 1), m.n.normalized_shape, m.n.weight, m.n.bias).permute(0, 3, 1, 2)
    return m.fc(m.b(y).mean((2, 3)))


def of(run, **more):
    return lambda: Net(run, **layers(**more))


BOTH, NO_A, NO_B = {"a": 8, "b": 8}, {"b": 8}, {"a": 8}


def over_the_root(m, x):
    y = m.a(x).relu()
    return m.fc(m.b(y / math.sqrt(y.shape[1])).mean([2, 3]))


def mean_by_hand(m, x):
    y = m.a(x).relu()
    return m.fc(m.b(y * (y.sum(1, keepdim=True) / int(y.shape[1]))).mean([2, 3]))


def checked_by_values_of_types(m, x):
    """What symbolic tracing refuses: loops over a list that torch does not see, and sizes as plain numbers."""
    for layer in [m.a, torch.relu, m.b]:
        x = layer(x)
    pooled = F.avg_pool2d(x, [int(size) for size in x.shape[2:]])
    return m.fc(pooled.reshape(len(x), -1))


FOLLOWED = {  # name → network, widths of the axes that can be pruned, first writers of those that cannot
    "a derived norm": (of(normed, n=Norm(8)), BOTH, {"fc"}),
    "derived layers": (of(plain, a=Conv3(3, 8), b=Conv3(8, 8, bias=False), fc=Classifier(8, 5)), BOTH, {"fc"}),
    "a derived GroupNorm": (of(normed, n=Groups(8)), {"a": 4, "b": 8}, {"fc"}),
    "a derived PReLU": (of(normed, n=Slope(8)), BOTH, {"fc"}),
    "a norm with activation": (of(normed, n=NormAct(8)), BOTH, {"fc"}),
    "a norm that calls torch's": (of(normed, n=ActingNorm(8)), BOTH, {"fc"}),
    "a norm with a gain": (of(normed, n=Gained(8)), BOTH, {"fc"}),
    "a norm of a concatenation": (of(concatenated_norm, n=NormAct(24), fc=nn.Linear(24, 5)), BOTH, {"fc"}),
    "a GroupNorm with activation": (of(normed, n=GroupsAct(4, 8)), {"a": 4, "b": 8}, {"fc"}),
    "groups that are written down": (of(normed, n=ScaledGroups(4, 8)), NO_A, {"a", "fc"}),
    "a convolution that pads": (of(plain, a=Padded(3, 8, 3), b=Padded(8, 8, 5)), BOTH, {"fc"}),
    "a depthwise one that pads": (of(plain, b=Padded(8, 8, 3, groups=8)), {"a": 8}, {"fc"}),
    "depthwise of a concatenation": (
        of(concatenated_read, c=Padded(16, 16, 3, groups=16), fc=nn.Linear(16, 5)), {"a": 8, "b": 8}, {"fc"}
    ),
    "depthwise, written down": (of(plain, b=Depthwise8(8, 8, 3, groups=8)), {}, {"a", "b", "fc"}),
    "standardised weights": (of(normed, n=Standardised(8, 8, 3)), {"a": 8, "n": 8, "b": 8}, {"fc"}),
    "weights that are turned": (of(normed, n=Turned(8, 8, 3)), NO_A, {"a", "n", "fc"}),
    "weights turned by their inputs": (of(normed, n=TurnedInputs(8, 8, 3)), NO_A, {"a", "n", "fc"}),
    "weights with a gain": (of(normed, n=GainedWeights(8, 8, 3)), {"a": 8, "n": 8, "b": 8}, {"fc"}),
    "a weight also read otherwise": (of(normed, n=Masked(8, 8, 3)), NO_A, {"a", "n", "fc"}),
    "a width read from a weight": (of(normed, n=OfWidth(8, 8, 3)), NO_A, {"a", "n", "fc"}),
    "layers as functions": (
        of(as_functions, n=nn.BatchNorm2d(8), p=nn.PReLU(8), g=nn.GroupNorm(4, 8)), {"a": 8, "b": 4}, {"fc"}
    ),
    "a norm of own parameters": (
        lambda: buffered(
            of(by_own_parameters, scale=scale(8))(), running_mean=torch.ones(8), running_var=torch.ones(8)
        ),
        BOTH,
        {"fc"},
    ),
    "coordinates of its type": (of(coordinates, b=conv(9, 8)), BOTH, {"fc"}),
    "a path dropped": (of(dropped_path), NO_B, {"fc"}),
    "tensors like others": (of(noisy), BOTH, {"fc"}),
    "a new tensor of the same width": (of(new_of_the_same_width), NO_A, {"a", "fc"}),
    "coordinate attention": (
        of(coordinate_attention, b=conv(8, 4, 1), c=conv(4, 8, 1), d=conv(4, 8, 1)), {"a": 8, "b": 4}, {"fc"}
    ),
    "parts of rows": (of(rows_one_by_one, c=conv(8, 8)), {"a": 8, "b": 8}, {"fc"}),
    "a size that the code remembers": (of(halves_remembered, b=conv(4, 8)), {}, {"a", "b", "fc"}),
    "parts of which the last is shorter": (of(in_parts, b=conv(8, 8), part=3), NO_A, {"a", "fc"}),
    "halves of the channels": (of(halves, b=conv(4, 8)), {"a": 4, "b": 8}, {"fc"}),
    "rows of two maps": (of(joined_rows_of_two, b=conv(3, 8), c=conv(8, 8)), {"a": 8, "c": 8}, {"fc"}),
    "unit length": (of(scaled_to_unit_length, scale=scale(8)), BOTH, {"fc"}),
    "deviation over channels": (of(deviation), BOTH, {"fc"}),
    "padding by the size of the image": (
        of(plain, a=Same(3, 8, 3, 2), b=Same(8, 8, 5, 2, groups=8)), {"a": 8}, {"fc"}
    ),
    "a list of parts of rows": (of(listed_rows), NO_B, {"fc"}),
    "sizes that decide": (of(deciding_by_sizes), BOTH, {"fc"}),
    "sums of small images": (  # which meet only there
        of(joining_small_ones, c=conv(3, 8), d=conv(8, 8), input_size=None), {"a": 8, "b": 8}, {"fc"}
    ),
    "one image alone": (of(unbatched), BOTH, {"fc"}),
    "a number of channels that decides": (of(deciding_by_channels), NO_A, {"a", "fc"}),
    "as many times as channels": (of(as_many_as_channels), NO_A, {"a", "fc"}),
    "a root of the number of channels": (of(over_the_root), NO_A, {"a", "fc"}),  # only a trial cut shows it
    "a mean by hand": (of(mean_by_hand), NO_A, {"a", "fc"}),
    "plain numbers and lists": (of(checked_by_values_of_types), BOTH, {"fc"}),
    "a slice that takes all": (of(all_of_them), BOTH, {"fc"}),
    "normalised over channels, written down": (
        of(normalised_over_channels, n=nn.LayerNorm(8)), NO_A, {"a", "fc"}
    ),
    "normalised over channels": (of(normalised_over_its_channels, n=nn.LayerNorm(8)), BOTH, {"fc"}),
    "normalised over channels and rows": (of(normed, n=nn.LayerNorm((8, 16, 16))), NO_A, {"a", "fc"}),
    "transposed": (
        of(through_transposed, t=nn.ConvTranspose2d(8, 6, 4, 2, 1), c=conv(6, 8)), {"a": 8, "t": 6, "c": 8}, {"fc"}
    ),
    "transposed, grouped": (
        of(through_transposed, a=conv(3, 12), t=nn.ConvTranspose2d(12, 24, 2, 2, groups=6), c=conv(24, 8)),
        {"a": 6, "c": 8},
        {"fc"},
    ),
    "transposed, depthwise": (
        of(through_transposed, t=nn.ConvTranspose2d(8, 8, 2, 2, groups=8), c=conv(8, 8)), {"a": 8, "c": 8}, {"fc"}
    ),
}  # fmt: skip
