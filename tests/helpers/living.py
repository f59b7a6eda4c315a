"""Statistics of channels in which those that are dead take no part: what pruning promises for them."""

import torch
from torch.overrides import TorchFunctionMode

from norton.graph.declarations import declaration_of

OVER_A_DIMENSION = ("mean", "std", "var", "amax", "amin", "max", "min", "var_mean")
NORMS = {"layer_norm": 2, "rms_norm": 2}  # where the first tensor of entries per channel is among the arguments


class OfTheLiving(TorchFunctionMode):
    """Lets channels that are zero everywhere take no part in what is computed over all channels.

    It knows nothing of a wiring: it looks at the numbers.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        dims = self.dims(name, args, kwargs)
        if len(dims) != 1:
            return func(*args, **kwargs)
        x, [dim] = args[0], dims
        alive = (x != 0).movedim(dim, 0).flatten(1).any(1).nonzero().flatten()
        if name == "conv1d":  # one filter that slides along channels
            found = func(x.index_select(dim, alive), *args[1:], **kwargs)
            return torch.zeros_like(x).index_copy_(dim, alive, found)
        if name not in NORMS and name != "group_norm":
            return func(x.index_select(dim, alive), *args[1:], **kwargs)
        entries = [part[alive] if isinstance(part, torch.Tensor) else part for part in args[2:]]
        entries_by_name = {k: v[alive] if isinstance(v, torch.Tensor) else v for k, v in kwargs.items()}
        size = args[1] if name == "group_norm" else (len(alive),)
        found = func(x.index_select(dim, alive), size, *entries, **entries_by_name)
        return torch.zeros_like(x).index_copy_(dim, alive, found)

    def dims(self, name, args, kwargs):
        """The dimensions over which a statistic is computed, if it may be one of channels."""
        if name in OVER_A_DIMENSION and isinstance(args[0], torch.Tensor):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else ())
            return [dim] if isinstance(dim, int) else list(dim or ())
        if name == "conv1d":
            return [-1] if args[0].shape[1] == args[1].shape[0] == 1 else []
        if name in NORMS and len(args[1]) == 1:
            return [-1]
        return [1] if name == "group_norm" and args[1] == 1 else []


def standardised_by_the_living(net):
    """A network whose convolutions with a forward pass of their own compute their weights of the inputs that live."""
    for layer in net.modules():
        for kind in (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d):
            if isinstance(layer, kind) and type(layer).forward is not kind.forward:
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
