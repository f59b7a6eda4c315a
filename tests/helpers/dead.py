"""The network whose removed filters are dead: what every cut network has to equal.

Nothing here knows how channels flow.  A filter that goes has weights of zero, and what it writes is then zero at every
position of every image: silent.  Silent channels have no part in anything: no offset wakes them, and what is computed
over channels (a mean, a norm) is computed over the others.
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from norton.graph.copies import copied
from norton.graph.declarations import declaration_of
from norton.graph.layers import TRANSPOSED_LAYERS

# In the place of activations that are zero for more than zero, by which a channel that lives could look silent.
LIVELY = {
    **dict.fromkeys(("relu", "relu_", "relu6", "hardtanh", "threshold"), lambda x: nn.functional.leaky_relu(x, 0.1)),
    **dict.fromkeys(("hardswish", "hardswish_", "softshrink", "hardshrink"), nn.functional.silu),
}
STATISTICS = ("mean", "std", "var", "var_mean", "amax", "amin", "max", "min")
WAKING = ("sigmoid", "sigmoid_", "hardsigmoid", "exp", "softplus", "cos", "batch_norm", "instance_norm", "group_norm")
SUMS = ("add", "add_", "__add__", "__radd__", "__iadd__", "sub", "sub_", "__sub__", "__rsub__", "__isub__")
NORMS = ("layer_norm", "rms_norm")


class Silence(TorchFunctionMode):
    """Lets silent channels stay so, and no other channel look silent; for batches of more than one image."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in LIVELY:
            return LIVELY[name](args[0])
        if name in ("cat", "concat") and len(args[0]) > 1 and args[0][0].dim() > 2:
            return _joined(func, *args, **kwargs)
        if not args or not isinstance(args[0], Tensor) or args[0].dim() < 2:
            return self._sum(func, args, kwargs) if name in SUMS else func(*args, **kwargs)
        if name in NORMS and len(args[1]) == 1:
            return self._among_the_living(func, args[0].dim() - 1, args, kwargs)
        if name == "group_norm" and args[1] == 1:
            return self._among_the_living(func, 1, args, kwargs)
        if name == "conv1d" and args[0].shape[1] == 1 and args[1].shape[:2] == (1, 1):
            return _slide(func, args, kwargs)
        if name in WAKING:
            x = args[0].clone()
            return func(*args, **kwargs) * _alive(x, range(1, x.dim()))
        if name in STATISTICS and (dim := _only_dim(args, kwargs)) is not None:
            alive = _alive(args[0], [dim]).flatten().nonzero().flatten()
            return func(args[0].index_select(dim, alive), *args[1:], **kwargs)
        return self._sum(func, args, kwargs) if name in SUMS else func(*args, **kwargs)

    def _sum(self, func, args, kwargs):
        """A sum of images with what is the same for all images, or for all channels: an offset."""
        tensors = [arg.clone() for arg in args[:2] if isinstance(arg, Tensor)]
        result = func(*args, **kwargs)
        for x, other in (tensors, tensors[::-1]) if len(tensors) == 2 else ((tensors[0], torch.tensor(0)),):
            if x.shape == result.shape and x.dim() > 1 and x.shape[0] > 1:
                size = [1] * (x.dim() - other.dim()) + list(other.shape)
                dims = [dim for dim in range(1, x.dim()) if size[0] == 1 or size[dim] == 1 < x.shape[dim]]
                result = result * _alive(x, dims)
        return result

    def _among_the_living(self, func, dim, args, kwargs):
        """A norm over channels; entries per channel are among its arguments."""
        x, size = args[0], args[0].shape[dim]
        alive = _alive(x, [dim]).flatten().nonzero().flatten()

        def entries(value):
            return value[alive] if isinstance(value, Tensor) and value.shape == (size,) else value

        rest = [entries(value) for value in args[2:]]
        asked = args[1] if isinstance(args[1], int) else (len(alive),)
        found = func(x.index_select(dim, alive), asked, *rest, **{key: entries(value) for key, value in kwargs.items()})
        return torch.zeros_like(x).index_copy_(dim, alive, found)


def _joined(func, tensors, dim=0):
    """Images beside what is the same for all of them, such as a token: it has no part in silent channels."""
    dim = dim % tensors[0].dim()
    moving = [x for x in tensors if not torch.equal(x[:1].expand_as(x), x)]
    if moving and dim > 0:
        alive = _alive(moving[0], [other for other in range(1, moving[0].dim()) if other != dim])
        tensors = [x if any(x is one for one in moving) else x * alive for x in tensors]
    return func(tensors, dim)


def _slide(func, args, kwargs):
    """One filter that slides along channels, over the neighbours that live."""
    alive = _alive(args[0], [2]).flatten().expand(args[0].shape[2]).nonzero().flatten()
    found = func(args[0].index_select(2, alive), *args[1:], **kwargs)
    return (
        torch.zeros_like(args[0]).index_copy_(2, alive, found)
        if found.shape[2] == len(alive)
        else func(*args, **kwargs)
    )


def _alive(x: Tensor, dims) -> Tensor:
    """1 where x is not silent, along each of some dimensions, to be multiplied with x.

    What is zero everywhere is no image with dead filters: it came of a difference, such as a variance.
    """
    alive = torch.ones((1,) * x.dim(), dtype=x.dtype)
    if not x.any():
        return alive
    for dim in dims:
        others = [other for other in range(x.dim()) if other != dim]
        alive = alive * (x.detach() != 0).to(x.dtype).amax(others, keepdim=True)
    return alive


def _only_dim(args, kwargs) -> int | None:
    """The dimension over which a statistic is computed, if it may be one of channels."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    dim = dim[0] if isinstance(dim, list | tuple) and len(dim) == 1 else dim
    if not isinstance(dim, int) or isinstance(dim, bool):
        return None
    return dim % args[0].dim() or None


@torch.no_grad()
def with_dead_filters(net: nn.Module, gone: dict[str, list[int]]) -> nn.Module:
    """A copy of a network in which these filters of each layer are zero."""
    net = normed_by_the_living(copied(net))
    for name, filters in gone.items():
        layer = net.get_submodule(name)
        around = net.get_submodule(name.rpartition(".")[0])
        if isinstance(around, nn.MultiheadAttention):  # whose heads go with as many channels that it gives
            for part in around.in_proj_weight.chunk(3), around.in_proj_bias.chunk(3):
                for entries in part:
                    entries[filters] = 0
        weight = layer.weight.detach().clone()
        if isinstance(layer, TRANSPOSED_LAYERS):  # (inputs, outputs of a group, ...)
            each = weight.shape[1]
            for group, part in enumerate(weight.chunk(layer.groups)):
                part[:, [f - group * each for f in filters if f // each == group]] = 0
        else:
            weight[filters] = 0
        set_weight_(layer, weight)
        if layer.bias is not None:
            getattr(layer, "bias_orig", layer.bias)[filters] = 0
    return standardised_by_the_living(net)


def set_weight_(layer: nn.Module, weight: Tensor) -> None:
    """Give a layer a weight, of which a weight norm has lengths and directions."""
    lengths = torch.norm_except_dim(weight, 2, 0)
    directions = torch.where(lengths == 0, 1, weight)
    if nn.utils.parametrize.is_parametrized(layer):
        layer.parametrizations.weight.original0.copy_(lengths)
        layer.parametrizations.weight.original1.copy_(directions)
    elif hasattr(layer, "weight_g"):
        layer.weight_g.copy_(lengths)
        layer.weight_v.copy_(directions)
    else:
        getattr(layer, "weight_orig", layer.weight).copy_(weight)


def normed_by_the_living(net):
    """A network whose spectral norms are those of filters and inputs that live, iterated to convergence.

    A layer that loses neither keeps the vectors that it has.
    """
    for layer in net.modules():
        parametrised = nn.utils.parametrize.is_parametrized(layer, "weight")
        if parametrised and hasattr(layer.parametrizations.weight[0], "_u"):
            before, weight = layer.weight.detach(), layer.parametrizations.weight.original
            dim = layer.parametrizations.weight[0].dim
            layer.__class__ = type(layer).__mro__[1]
            del layer.parametrizations
        elif hasattr(layer, "weight_u"):
            before, weight = layer.weight.detach(), layer.weight_orig
            [dim] = [hook.dim for hook in layer._forward_pre_hooks.values() if hasattr(hook, "dim")]
            layer._forward_pre_hooks.clear()
            del layer.weight, layer.weight_orig
        else:
            continue
        layer.weight = nn.Parameter(weight.detach().clone())
        layer.forward = _normed_forward(layer, before, dim)
    return net


def _normed_forward(layer, before, dim):
    forward, whole = layer.forward, layer.weight.detach().clone()

    def normed(x):
        features = isinstance(layer, nn.Linear)
        alive = (x != 0).movedim(-1 if features else 1, 0).flatten(1).any(1).to(x.dtype)
        original = layer._parameters["weight"]
        living = original.movedim(0 if isinstance(layer, TRANSPOSED_LAYERS) else 1, -1)
        if isinstance(layer, TRANSPOSED_LAYERS) or getattr(layer, "groups", 1) == 1:
            living = living * alive
        else:
            of_filter = alive.view(layer.groups, 1, -1).expand(-1, len(original) // layer.groups, -1).flatten(0, 1)
            living = living * of_filter.view(len(original), *[1] * (living.dim() - 2), -1)
        living = living.movedim(-1, 0 if isinstance(layer, TRANSPOSED_LAYERS) else 1)
        normed = living / torch.linalg.matrix_norm(living.movedim(dim, 0).flatten(1), 2)
        layer._parameters["weight"] = before if torch.equal(living, whole) else normed
        try:
            return forward(x)
        finally:
            layer._parameters["weight"] = original

    return normed


def standardised_by_the_living(net):
    """A network whose convolutions with a forward pass of their own compute their weights of the inputs that live."""
    for layer in net.modules():
        for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            own = isinstance(layer, kind) and type(layer).forward is not kind.forward
            if own and declaration_of(layer) is None:
                layer.forward = _of_living_inputs(layer)
    return net


def _of_living_inputs(layer):
    forward = layer.forward

    def of_living_inputs(x):
        alive = (x != 0).movedim(1, 0).flatten(1).any(1).nonzero().flatten()
        each, weight = layer.in_channels // layer.groups, layer._parameters["weight"]
        of_a_group = [i for i in range(each) if i in alive]
        if [g * each + i for g in range(layer.groups) for i in of_a_group] != alive.tolist():  # whole groups are dead
            return forward(x)
        layer._parameters["weight"] = weight[:, of_a_group]
        try:
            return forward(x[:, alive])
        finally:
            layer._parameters["weight"] = weight

    return of_living_inputs


@torch.no_grad()
def outputs(net: nn.Module, inputs: tuple) -> list[Tensor]:
    """All tensors that a network gives, in evaluation mode, with what is silent kept so."""
    with Silence():
        return [value for value in tree_flatten(net.eval()(*inputs))[0] if isinstance(value, Tensor)]


def largest_error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to how far images change the outputs; infinite where shapes differ."""
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float("inf")
    errors = []
    for one, other in zip(found, expected, strict=True):
        spread = (other - other.mean(0)).abs().max().item()
        errors.append((one - other).abs().max().item() / max(spread, 1e-3))
    return max(errors)
