"""Whether a cut network computes what it should, by two oracles that know nothing of surgery."""

import copy

import torch
from torch import nn
from torch.func import functional_call

import norton
from helpers.dead import Silence, with_dead_filters
from norton.graph.inputs import Inputs
from norton.graph.plan import apply_plan_
from norton.graph.wiring import positions
from norton.pruning.allocation import Allocation

SIDES = {"alexnet": 64, "inception_v3": 75}
# Networks that compute statistics of channels before a layer reads these, so that hiding them from readers is too late.
OVER_CHANNELS = {"normalised over channels", "mean over channels", "deviation over channels", "convnext_tiny"}
CHOICES = ["at random", "l2", "fpgm"]


def randomised(net, name=""):
    generator = torch.Generator().manual_seed(len(name))
    for key, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if key.endswith(("running_var", "layer_scale")) or (tensor.dim() == 1 and key.endswith("weight")):
            tensor.uniform_(0.7, 1.3, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(-0.2, 0.2, generator=generator)
        else:
            bound = (3 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound, generator=generator)
    net.name = name
    return net.eval()


def wired(cases, name):
    """A network out of {name: (make, widths, whole)} and its wiring, of which exactly these axes can be cut."""
    make, widths, whole = cases[name]
    torch.manual_seed(0)
    net = randomised(make().double(), name)
    wiring = norton.wiring_of(net)
    frozen = wiring.frozen
    assert {wiring.name(axis): wiring.width(axis) for axis in wiring.writers if axis not in frozen} == widths
    assert set(wiring.left_whole) == whole
    return net, wiring, widths


def images(net, count=2):
    side = SIDES.get(net.name, 32)
    dtype = next(net.parameters()).dtype
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1)).to(dtype)


def random_keep(wiring, rate=0.3, seed=0):
    """Axis → units kept, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        axis: torch.randperm(wiring.width(axis), generator=generator)[:width].sort().values.tolist()
        for axis, width in Allocation(rate, options=norton.PruneOptions(min_filters=1)).rated(None, wiring).items()
    }


def pruned(net, wiring, choice):
    """A pruned copy of a network, and what its axes keep."""
    if choice != "at random":
        small = norton.prune(net, 0.3, criterion=choice, options=norton.PruneOptions(min_filters=1))
        return small, {wiring.axis_of(layer): kept for layer, kept in small.plan[-1]["keep"].items()}
    keep = random_keep(wiring)
    step = {"op": "prune", "keep": {wiring.name(axis): kept for axis, kept in keep.items()}}
    return apply_plan_(copy.deepcopy(net), [step]), keep


def alive(wiring, channels, keep, like):
    """1 for each kept position of `channels`, 0 for the others."""
    return torch.zeros(len(channels), dtype=like.dtype).index_fill_(
        0, torch.tensor(positions(wiring, channels, keep)), 1
    )


@torch.no_grad()
def masked_outputs(net, wiring, keep, x):
    """The outputs with removed channels zeroed wherever a layer reads them."""
    hooks = []
    for name, channels in wiring.reads:
        layer = net.get_submodule(name)
        mask = alive(wiring, channels, keep, x).view((-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1))

        def zero(_, inputs, mask=mask):
            return (inputs[0] * mask,)

        hooks.append(layer.register_forward_pre_hook(zero))
    try:
        return net(x)
    finally:
        for hook in hooks:
            hook.remove()


def without_offsets(net):
    """Tensors by which norms map zero to zero, in the place of the network's: all activations behind them do so."""
    return {
        f"{name}.{key}" if name else key: torch.zeros_like(getattr(layer, key))
        for name, layer in net.named_modules()
        for key in ("bias", "running_mean")
        if not isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, key, None) is not None
    }


@torch.no_grad()
def outputs_without_offsets(net, x):
    """The outputs of a network with linear norms, in which what is silent stays so, see `helpers.dead`."""
    with Silence():
        return _called(net, without_offsets(net), x)


def _called(net, tensors, x):
    """What a network with other tensors gives, for images or all inputs."""
    inputs = x if isinstance(x, Inputs) else Inputs((x,))
    return functional_call(net, tensors, inputs.args, dict(inputs.kwargs))


@torch.no_grad()
def dead_outputs(net, wiring, keep, x):
    """The outputs of a network with linear norms whose removed filters are zero.

    Of the wiring it asks only which filters go: where their channels lead, the network itself shows.
    """
    return outputs_without_offsets(with_dead_filters(net, wiring.gone_filters(keep)), x)


def check_exact(net, wiring, small, keep, x=None):
    x = images(net) if x is None else x
    with torch.no_grad():
        y = small(x)
    tolerance = 1e-9 if y.dtype == torch.float64 else 1e-4
    if net.name not in OVER_CHANNELS:  # whose channels meet before a layer reads them
        expected = masked_outputs(net, wiring, keep, x)
        assert y.shape == expected.shape
        assert expected.std() > 1e-3
        torch.testing.assert_close(y, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    dead = dead_outputs(net, wiring, keep, x)
    y = outputs_without_offsets(small, x)
    assert dead.std() > 1e-3
    torch.testing.assert_close(y, dead, rtol=0, atol=tolerance * dead.abs().max().item())
