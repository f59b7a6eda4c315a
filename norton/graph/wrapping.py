"""What is around a network, and how its tensors lie in memory: a network made of another one keeps both."""

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from norton.common.errors import warn

_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
_OF_DISTRIBUTED = (
    *("device_ids", "output_device", "dim", "broadcast_buffers", "process_group", "gradient_as_bucket_view"),
    *("find_unused_parameters", "static_graph"),
)


def kept_like_(net: nn.Module, small: nn.Module) -> nn.Module:
    """A network made of what is in `net`, with its memory format, in place, and wrapped as that is.

    Wrappers are DataParallel, DistributedDataParallel and that of torch.compile, see `norton.graph.layers.network_in`.
    """
    if any(layer._compiled_call_impl is not None for layer in nn.Module.modules(net)):
        warn("the network was compiled in place, by net.compile(), and the result is not; call its compile(), too")
    for dims in _FORMATS:
        if _is_channels_last(net, dims):
            small = small.to(memory_format=_FORMATS[dims])
    return _wrapped_like(net, small)


def _is_channels_last(net: nn.Module, dims: int) -> bool:
    """Whether the weights of so many dimensions whose memory format can be told are channels last."""
    weights = [p for p in nn.Module.parameters(net) if p.dim() == dims]
    last = [p.is_contiguous(memory_format=_FORMATS[dims]) for p in weights if not p.is_contiguous()]
    first = [p for p in weights if p.is_contiguous() and not p.is_contiguous(memory_format=_FORMATS[dims])]
    return bool(last) and all(last) and not first


def _wrapped_like(net: Any, small: nn.Module) -> nn.Module:
    training = net.training
    if hasattr(net, "_orig_mod"):  # with the same backend and settings
        small = type(net)(_wrapped_like(net._orig_mod, small), net.dynamo_ctx)
    elif isinstance(net, nn.DataParallel):
        devices = {key: getattr(net, key) for key in ("device_ids", "output_device", "dim") if hasattr(net, key)}
        small = type(net)(_wrapped_like(net.module, small), **devices)
    elif isinstance(net, DistributedDataParallel):
        settings = {key: getattr(net, key) for key in _OF_DISTRIBUTED if hasattr(net, key)}
        small = type(net)(_wrapped_like(net.module, small), **settings)
    else:
        return small
    small.training = training
    return small
