"""A network of few filters and the literal error of changing one of its layers."""

import torch
import torch.nn.functional as F
from torch import nn

import norton
from norton import Calibration, DecomposeOptions

QUICK = {"starts": 1, "iterations": 20}
AS_MEASURED = {"objective": "outputs", "calibration": Calibration(sequential=False, sweeps=1), **QUICK}
WEIGHTS, OUTPUTS = (DecomposeOptions(objective=objective, options=QUICK) for objective in ("weights", "outputs"))


class Toy(nn.Module):
    """Three convolutions of different kinds, one of which has neither bias nor BatchNorm behind it."""

    input_size = (3, 11, 11)

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 12, (3, 2), padding=1)
        self.conv2 = nn.Conv2d(12, 10, 3, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(10)
        self.conv3 = nn.Conv2d(10, 14, (1, 3), padding=(0, 1), bias=False)
        self.fc = nn.Linear(14, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean((2, 3)))


def inputs_of(net, name, images):
    kept = []
    hook = net.get_submodule(name).register_forward_pre_hook(lambda layer, args: kept.append(args[0]))
    with torch.no_grad():
        net(images)
    hook.remove()
    return kept[0]


def literal_error(net, name, change, images):
    """Relative squared output error by F.unfold, of what varies where constants are taken up."""
    layer, x = net.get_submodule(name), inputs_of(net, name, images).double()
    if isinstance(layer, nn.Linear):
        columns = x.T
    else:
        columns = F.unfold(x, layer.kernel_size, padding=layer.padding, stride=layer.stride)
        columns = columns.transpose(0, 1).flatten(1)
    if layer.bias is not None or name == "conv2":
        columns = columns - columns.mean(1, keepdim=True)
    whole = layer.weight.detach().double().flatten(1) @ columns
    lost = change.double().flatten(1) @ columns
    return (lost.square().sum() / whole.square().sum()).item()


def fitted_error(net, name, rank, images, **options):
    """The literal error of one layer decomposed as the public function does it."""
    options |= {"images": images} if "objective" in options else {}
    small = norton.decompose(net, {name: rank}, **options)
    change = net.get_submodule(name).weight - small.get_submodule(name).composed_weight()
    return literal_error(net, name, change.detach(), images)
