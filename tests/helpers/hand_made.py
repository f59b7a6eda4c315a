"""Networks made by hand that declare nothing, each with what is special about it."""

import torch
import torch.nn.functional as F
import torchvision
from torch import nn


class Net(nn.Module):
    """Layers by name, and a forward pass given as a function of them."""

    input_size = (3, 16, 16)

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer) if isinstance(layer, nn.Module) else setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(a, b, kernel=3, **options):
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **options)


def shuffled(m, x):
    y = m.a(x).relu()
    n, c, h, w = y.shape
    y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return m.fc(m.c(m.b(y).relu()).mean([2, 3]))


def gated(m, x):
    y = F.relu(m.n(m.a(x)))
    n, c, _, _ = y.size()
    s = torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1).view(n, c))))).view(n, c, 1, 1)
    return m.fc((y * s.expand_as(y)).mean((2, 3)))


def squeezed(m, x):
    y = m.a(x).relu()
    n, c = y.size()[:2]
    s = m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)[:, :, 0, 0].view(n, c)))).sigmoid()
    return m.fc((y * s[..., None, None]).mean((2, 3)))


def first_half(m, x):
    y = m.a(x).relu()
    return m.fc((m.b(y[:, :8]) + m.c(y)).relu().mean([2, 3]))


def normed_twice(m, x):
    y = m.c(m.n(m.a(x)).relu())
    return m.fc((y + m.d(m.n(torch.cat([m.p(x), m.q(x)], 1)).relu())).mean([2, 3]))


def normed_out_of_sight(m, x):
    y = m.n(m.a(x).flip(1)).relu()
    return m.fc((m.c(y) + m.d(m.n(m.b(x)).relu())).mean([2, 3]))


def scaled_twice(m, x):
    return m.fc((m.c(m.a(x) * m.scale) + m.d(m.b(x) * m.scale.view(1, -1, 1, 1))).relu().mean([2, 3]))


def scaled_and_averaged(m, x):
    return m.fc((m.b(m.a(x) * m.scale) * m.scale.mean()).mean([2, 3]))


def scaled_along_two(m, x):
    y = m.b(m.a(x) * m.scale)  # (8, 8), by channels and rows
    return m.fc((m.c(x).permute(0, 2, 3, 1) * m.scale).permute(0, 3, 1, 2).add(y).mean([2, 3]))


def evaluated_otherwise(m, x):
    y = m.a(x).relu()
    return m.fc(m.b(y if m.training else m.c(y)).mean([2, 3]))


def frozen_norm(width):
    return torchvision.ops.FrozenBatchNorm2d(width)


def scale(*shape):
    return nn.Parameter(torch.ones(shape))


def buffered(net, **buffers):
    for name, tensor in buffers.items():
        net.register_buffer(name, tensor)
    return net


def aliased(net):
    net.other = net.scale
    return net


def layers(**more):
    return {"a": conv(3, 8), "b": conv(8, 8), "fc": nn.Linear(8, 5)} | more


HAND_MADE = {  # name → network, widths of the axes that can be pruned, first writers of those that cannot
    "plain": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x).relu()).relu().mean([2, 3])), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "residual": (
        lambda: Net(lambda m, x: m.fc(((y := m.a(x).relu()) + m.b(y)).relu().amax((2, 3))), **layers()),
        {"a": 8},
        {"fc"},
    ),
    "concatenating": (
        lambda: Net(
            lambda m, x: m.fc(m.n(torch.cat([y := m.a(x).relu(), m.b(y), y], 1)).relu().mean([2, 3])),
            **layers(n=nn.BatchNorm2d(24), fc=nn.Linear(24, 5)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "grouped": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu())).relu().mean([2, 3])),
            a=conv(3, 12),
            b=conv(12, 24, groups=6),
            n=nn.GroupNorm(3, 24),
            fc=nn.Linear(24, 5),
        ),
        {"a": 3},
        {"fc"},
    ),
    "depthwise": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x)).relu().mean([2, 3])), **layers(b=conv(8, 8, 5, groups=8))),
        {"a": 8},
        {"fc"},
    ),
    "a gate": (
        lambda: Net(gated, **layers(n=nn.BatchNorm2d(8), down=nn.Linear(8, 4), up=nn.Linear(4, 8))),
        {"a": 8, "down": 4},
        {"fc"},
    ),
    "flatten": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu()).flatten(1))),
            **layers(n=nn.BatchNorm1d(8 * 256), fc=nn.Linear(8 * 256, 5)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a size in the code": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x).relu()).view(-1, 2048)), **layers(fc=nn.Linear(2048, 5))),
        {"a": 8},
        {"b", "fc"},
    ),
    "view that follows": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x)).relu().view(x.size(0), -1)), **layers(fc=nn.Linear(2048, 5))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a layer called twice": (
        lambda: Net(lambda m, x: m.fc(m.b(m.b(m.a(x).relu()).relu()).mean([2, 3])), **layers()),
        {"a": 8},
        {"fc"},
    ),
    "shuffle": (lambda: Net(shuffled, **layers(c=conv(8, 8, 1))), {"a": 4, "b": 8, "c": 8}, {"fc"}),
    "half of the channels": (
        lambda: Net(first_half, **layers(a=conv(3, 16), c=conv(16, 8))),
        {"a#2": 8, "b": 8},
        {"a", "fc"},
    ),
    "a scale per channel": (
        lambda: Net(
            lambda m, x: m.fc((m.b(m.a(x).relu()) * m.scale).mean([2, 3])),
            **layers(scale=nn.Parameter(torch.ones(8, 1, 1))),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "channels last": (
        lambda: Net(
            lambda m, x: m.fc(m.v(F.gelu(m.u(m.a(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2).mean([2, 3])),
            **layers(u=nn.Linear(8, 16), v=nn.Linear(16, 8)),
        ),
        {"a": 8, "u": 16, "v": 8},
        {"fc"},
    ),
    "normalised over channels": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.a(x).relu()).mean([2, 3]))), **layers(n=nn.LayerNorm(8))
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "mean over channels": (
        lambda: Net(lambda m, x: m.fc(((y := m.b(m.a(x).relu())) * y.mean(1, keepdim=True)).mean([2, 3])), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "number of channels": (
        lambda: Net(lambda m, x: m.fc((m.b(y := m.a(x).relu()) / y.size(1)).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "number of positions": (
        lambda: Net(lambda m, x: m.fc((y := m.b(m.a(x).relu())).sum([2, 3]) / (y.shape[2] * y.size(-1))), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "an assertion": (lambda: Net(asserting, **layers()), {"b": 8}, {"a", "fc"}),
    "shared weights": (
        lambda: shared(Net(lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).mean([2, 3])), **layers(c=conv(8, 8)))),
        {},
        {"a", "b", "c", "fc"},
    ),
    "a layer without slicer": (
        lambda: Net(lambda m, x: m.fc(m.t(m.b(m.a(x).relu())).mean([2, 3])), **layers(t=nn.LocalResponseNorm(2))),
        {"a": 8},
        {"b", "fc"},
    ),
    "a parametrised layer": (
        lambda: Net(
            lambda m, x: m.fc(m.c(m.b(m.a(x).relu()).relu()).mean([2, 3])),
            **layers(b=nn.utils.parametrize.register_parametrization(conv(8, 8), "weight", nn.Tanh()), c=conv(8, 8)),
        ),
        {"c": 8},
        {"a", "b", "fc"},
    ),
    "a norm of a stream and of a concatenation": (
        lambda: Net(
            normed_twice, **layers(n=nn.BatchNorm2d(8), p=conv(3, 4), q=conv(3, 4), c=conv(8, 8), d=conv(8, 8))
        ),
        {"a": 4, "a#2": 4, "c": 8},
        {"fc"},
    ),
    "a norm that is also elsewhere": (
        lambda: Net(normed_out_of_sight, **layers(b=conv(3, 8), n=nn.BatchNorm2d(8), c=conv(8, 8), d=conv(8, 8))),
        {"a": 8, "c": 8},
        {"fc"},
    ),
    "clamped by a parameter": (
        lambda: Net(
            lambda m, x: m.fc(m.b(torch.clamp(m.a(x), min=m.low)).relu().mean([2, 3])), **layers(low=scale(1, 8, 1, 1))
        ),
        {"b": 8},
        {"a", "fc"},
    ),
    "a scale used twice": (
        lambda: Net(scaled_twice, **layers(b=conv(3, 8), c=conv(8, 8), d=conv(8, 8), scale=scale(8, 1, 1))),
        {"a": 8, "c": 8},
        {"fc"},
    ),
    "a scale per channel and position": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) * m.scale).mean([2, 3])), **layers(scale=scale(8, 16, 16))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a scale that is averaged": (
        lambda: Net(scaled_and_averaged, **layers(scale=scale(8, 16, 16))),
        {"b": 8},
        {"a", "fc"},
    ),
    "a scale along two dimensions": (
        lambda: Net(
            scaled_along_two,
            **layers(c=conv(3, 8), scale=scale(8, 1, 8), input_size=(3, 8, 8)),
        ),
        {},
        {"a", "b", "fc"},
    ),
    "a scale of two names": (
        lambda: aliased(
            Net(
                lambda m, x: m.fc((m.b(m.a(x) * m.scale) * m.other).mean([2, 3])),
                **layers(scale=nn.Parameter(torch.ones(8, 1, 1))),
            )
        ),
        {},
        {"a", "b", "fc"},
    ),
    "a layer only in evaluation": (
        lambda: Net(evaluated_otherwise, **layers(c=conv(8, 8, 1))),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a flip only in evaluation": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) if m.training else m.a(x).flip(1)).mean([2, 3])), **layers()),
        {"a": 4, "b": 8},
        {"fc"},
    ),
    "frozen norms": (
        lambda: Net(
            lambda m, x: m.fc(m.n(m.b(m.k(m.a(x)).relu())).relu().mean([2, 3])),
            **layers(k=frozen_norm(8), n=frozen_norm(8)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a buffer that is scaled": (
        lambda: buffered(
            Net(lambda m, x: m.fc(m.b(m.a(x) * (m.scale * 2)).mean([2, 3])), **layers()), scale=torch.ones(1, 8, 1, 1)
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "statistics of a norm": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.n(m.a(x)) * m.n.running_var[:, None, None]).mean([2, 3])),
            **layers(n=nn.BatchNorm2d(8)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "normalised over all": (
        lambda: Net(lambda m, x: m.fc(m.b(F.layer_norm(y := m.a(x), y.shape[1:])).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "normalised over positions": (
        lambda: Net(lambda m, x: m.fc(m.b(F.layer_norm(y := m.a(x), y.shape[2:])).amax([2, 3])), **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a constant per channel": (
        lambda: Net(lambda m, x: m.fc(m.b(m.a(x) * torch.ones(8, 1, 1, dtype=torch.float64)).mean([2, 3])), **layers()),
        {"b": 8},
        {"a", "fc"},
    ),
    "a tensor that is no buffer": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.a((x - m.mean) / m.std)).mean([2, 3])),
            **layers(mean=torch.zeros(3, 1, 1), std=torch.ones(1)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "a gate per position": (
        lambda: Net(
            lambda m, x: m.fc(m.b((y := m.a(x).relu()) * m.g(y).sigmoid()).mean([2, 3])), **layers(g=conv(8, 1))
        ),
        {"a": 8, "b": 8},
        {"fc", "g"},
    ),
    "a gate by indices": (
        lambda: Net(squeezed, **layers(down=nn.Linear(8, 4), up=nn.Linear(4, 8))),
        {"a": 8, "down": 4},
        {"fc"},
    ),
    "padding and upsampling": (
        lambda: Net(
            lambda m, x: m.fc(m.b(m.u(m.z(m.a(x).relu()))).mean([2, 3])),
            **layers(z=nn.ZeroPad2d(1), u=nn.Upsample(scale_factor=2)),
        ),
        {"a": 8, "b": 8},
        {"fc"},
    ),
    "an assignment": (lambda: Net(in_place, **layers()), {"a#2": 4, "b": 8}, {"a", "fc"}),
    "two outputs": (
        lambda: Net(lambda m, x: (m.fc((y := m.b(m.a(x).relu())).mean([2, 3])), y)[0], **layers()),
        {"a": 8, "b": 8},
        {"fc"},
    ),
}  # fmt: skip


def asserting(m, x):
    y = m.a(x)
    torch._assert(y.shape[1] == 8, "eight channels")
    torch._assert(y.shape[2] > 3, "large images")
    return m.fc(m.b(y.relu()).mean([2, 3]))


def in_place(m, x):
    y = m.a(x)
    y[:, 2:4] = 0
    return m.fc(m.b(y).mean([2, 3]))


def shared(net):
    net.c.weight = net.b.weight
    return net
