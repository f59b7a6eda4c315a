"""Blocks after well-known designs: cut exactly, and where it matters."""

import pytest
import torch
from helpers import known_blocks as b
from helpers import known_networks as n
from helpers.dead import largest_error, outputs, with_dead_filters
from torch import nn

import norton
from norton.graph.layers import width

# block → the layers of it that lose filters, or more
BLOCKS = {
    "C2f by chunk": (b.C2f, {"cv1.conv", "m.0.cv1.conv", "m.0.cv2.conv", "m.1.cv1.conv", "m.1.cv2.conv", "cv2.conv"}),
    "C2f by split": (lambda: b.C2f(True), {"cv1.conv", "m.0.cv1.conv", "m.0.cv2.conv", "m.1.cv1.conv", "cv2.conv"}),
    "SPPF": (b.SPPF, {"cv1.conv", "cv2.conv"}),
    "ELAN": (b.ELAN, {"cv1.conv", "cv2.conv", "cv3.conv", "cv4.conv", "cv5.conv"}),
    "CSP": (b.CSP, {"conv_exp.conv", "blocks.0.cv1.conv", "conv_transition_b.conv", "conv_transition.conv"}),
    "Res2Net": (b.Res2Net, {"conv1", "convs.0", "convs.1", "convs.2", "conv3"}),
    "ShuffleNetV2": (b.ShuffleV2, {"stem", "branch2.0", "branch2.3", "branch2.5"}),
    "GhostNet": (b.Ghost, {"primary_conv.0", "cheap_operation.0"}),
    "mixed convolutions": (b.Mixed, {"expand", "convs.0", "convs.1"}),
    "coordinate attention": (b.Coordinate, {"stem", "conv1", "conv_h", "conv_w"}),
    "ECA": (b.ECA, {"reduce", "expand"}),
    "CBAM": (b.CBAM, {"conv", "mlp.1", "mlp.3"}),
    "SE": (b.SE, {"conv", "fc.0", "fc.2"}),
    "selective kernel": (b.SelectiveKernel, {"paths.0.conv", "paths.1.conv", "fc_reduce", "fc_select"}),
    "split attention": (b.SplitAttention, {"stem", "conv", "fc1", "fc2"}),
    "U-Net, transposed": (b.UNet, {"inc.conv", "down.1.conv", "up", "conv.conv"}),
    "U-Net, interpolated": (lambda: b.UNet(True), {"inc.conv", "down.1.conv", "conv.conv"}),
    "OSNet": (b.OSNet, {"conv1.conv", "streams.0.0.1.conv", "streams.1.0.1.conv", "gate.1", "gate.3", "conv3.conv"}),
    "L2Norm": (n.L2Norm, {"conv"}),
    "super-resolution": (n.SuperResolution, {"stem", "conv1", "conv2", "up.0"}),
    "NAFNet": (n.NAFNet, {"stem", "conv1", "conv2", "conv3", "sca.1", "conv4", "conv5"}),
    "NAFNet without LayerNorm": (lambda: n.NAFNet(False), {"stem", "conv1", "conv2", "conv3", "sca.1", "conv4"}),
    "ConvLSTM": (n.ConvLSTM, {"stem"}),
    "ConvNeXt": (n.ConvNeXt, {"stem", "dwconv", "pwconv1", "pwconv2"}),
    "ConvNeXt V2": (lambda: n.ConvNeXt(True), {"stem", "dwconv", "pwconv1", "pwconv2"}),
    "weight-standardised": (n.Standardised, {"stem", "a", "b"}),
    "weight norm": (n.WeightNormed, {"stem", "a", "b", "c"}),
    "RepVGG": (n.RepVGG, {"stem", "rbr_dense.0", "rbr_1x1.0"}),
    "MobileOne": (n.MobileOne, {"stem", "dw.0.conv", "dw.1.conv", "dw_scale.conv", "pw.0.conv", "pw.1.conv"}),
    "LSTM": (n.Recurrent, {"stem", "cnn.0"}),
    "GRU": (lambda: n.Recurrent(nn.GRU), {"stem", "cnn.0"}),
    "ViT": (lambda: n.Transformer(n.SelfAttention()), {"stem", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}),
    "ViT, fused": (lambda: n.Transformer(n.SelfAttention(fused=True)), {"stem", "attn.qkv", "attn.proj", "mlp.fc1"}),
    "ViT, gated": (lambda: n.Transformer(n.SelfAttention(), gated=True), {"stem", "attn.qkv", "mlp.fc1", "mlp.fc2"}),
    "attention by hand": (lambda: n.Transformer(n.ByHand()), {"stem", "attn.to_q", "attn.to_kv", "mlp.fc1"}),
    "MultiheadAttention": (lambda: n.Transformer(n.OfTorch()), {"stem", "attn.attn.out_proj", "mlp.fc1"}),
    "Swin": (n.Window, {"stem", "attn.qkv", "attn.proj", "mlp.fc1"}),
}


class Around(nn.Module):
    """A stem, a block, and a layer that reads it."""

    input_size = (3, 8, 8)

    def __init__(self, block):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, b.WIDTH, 3, padding=1), nn.BatchNorm2d(b.WIDTH)
        self.block = block
        self.head = nn.Conv2d(block.out, 5, 1)

    def forward(self, x):
        return self.head(self.block(torch.relu(self.bn(self.stem(x)))))


class Generator(nn.Module):
    """DCGAN's, from a vector by a linear layer."""

    input_size = (12,)

    def __init__(self):
        super().__init__()
        self.width = 16
        self.l1 = nn.Sequential(nn.Linear(12, self.width * 2**2))
        self.main = nn.Sequential(
            *(nn.ConvTranspose2d(16, 24, 4, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(True)),
            *(nn.ConvTranspose2d(24, 20, 4, 2, 1, bias=False), nn.BatchNorm2d(20), nn.ReLU(True)),
            *(nn.ConvTranspose2d(20, 3, 4, 2, 1, bias=False), nn.Tanh()),
        )

    def forward(self, z):
        return self.main(self.l1(z).view(z.shape[0], self.width, 2, 2))


class TwoStreams(nn.Module):
    """An image and its flow, joined late."""

    def __init__(self):
        super().__init__()
        self.rgb = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 20, 3))
        self.flow = nn.Sequential(nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3))
        self.fuse, self.fc = nn.Conv2d(40, 16, 1), nn.Linear(16, 5)

    def forward(self, image, flow=None):
        a, b = self.rgb(image), self.flow(flow)
        return self.fc(torch.relu(self.fuse(torch.cat([a * b.sigmoid(), b], 1))).mean((2, 3)))


@torch.no_grad()
def at_random(net):
    """In double precision, with statistics and entries of norms at random."""
    torch.manual_seed(0)
    net = net.double()
    for layer in net.modules():
        if isinstance(getattr(layer, "running_var", None), torch.Tensor):
            layer.running_mean.uniform_(-0.2, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
        for entries in layer._parameters.values():
            if entries is not None and entries.dim() == 1:
                entries.add_(torch.empty_like(entries).uniform_(-0.3, 0.3))
    return net.eval()


def check(net, inputs, layers):
    """30% go, exactly, and from all these layers."""
    example = inputs[0] if len(inputs) == 1 else inputs
    wiring = norton.wiring_of(net, example)
    options = norton.PruneOptions(min_filters=1)
    small = norton.prune(net, 0.3, criterion="l2", options=options, example=example)
    keep = {wiring.axis_of(name): kept for name, kept in small.plan[-1]["keep"].items()}
    expected = outputs(with_dead_filters(net, wiring.gone_filters(keep)), inputs)
    assert largest_error(outputs(net, inputs), expected) > 1e-3
    assert largest_error(outputs(small, inputs), expected) < 1e-9
    whole = {name for name in layers if width(small.get_submodule(name)) == width(net.get_submodule(name))}
    assert not whole, wiring.left_whole


def images(count, *size):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("name", BLOCKS)
def test_known_blocks(name):
    make, layers = BLOCKS[name]
    torch.manual_seed(0)
    net = at_random(Around(make()))
    check(net, (images(3, 3, 8, 8),), {layer if layer == "stem" else f"block.{layer}" for layer in layers})


def test_generator():
    check(at_random(Generator()), (images(3, 12),), {"l1.0", "main.0", "main.3"})


def test_two_streams():
    check(at_random(TwoStreams()), (images(3, 3, 8, 8), images(3, 2, 8, 8)), {"rgb.0", "rgb.3", "flow.0", "flow.3"})
