"""Networks in half precision, which are fitted in float32: their least squares, and sums over images, ask for it."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from norton.calibration.batches import Images
from norton.graph.copies import copied


def is_coarse(dtype: torch.dtype) -> bool:
    """Whether numbers of a type are floating-point, and of less than 32 bits."""
    return dtype.is_floating_point and torch.finfo(dtype).bits < 32


def _computes_in_half(net: nn.Module) -> bool:
    """By its first parameter: a network that goes over to half precision on its way casts what it computes itself."""
    return is_coarse(next(net.parameters()).dtype)


def as_float32(net: nn.Module) -> nn.Module:
    """A copy of a network in half precision with the same values in float32; any other network itself."""
    if not _computes_in_half(net):
        return net
    return copied(net)._apply(lambda tensor: tensor.float() if is_coarse(tensor.dtype) else tensor)


def images_for(net: nn.Module, images: Images) -> Images:
    """Images as what `as_float32` gives takes them."""
    if not _computes_in_half(net):
        return images
    return tree_map(lambda x: x.float() if isinstance(x, Tensor) and is_coarse(x.dtype) else x, images)


def rounded_like_(small: nn.Module, net: nn.Module) -> nn.Module:
    """Give parameters and buffers, in place, the precision that those of a network have under the same names.

    What has another name, such as a factor, takes that of the layer whose place it is in.
    """
    if not _computes_in_half(net):
        return small
    known = {name: tensor.dtype for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    for name, dtype in list(known.items()):
        known.setdefault(name.rpartition(".")[0], dtype)  # of a layer that of its first parameter
    for path, layer in small.named_modules():
        for held in layer._parameters, layer._buffers:
            for key, tensor in held.items():
                if tensor is not None and tensor.is_floating_point():
                    tensor.data = tensor.data.to(_dtype_at(f"{path}.{key}".lstrip("."), known, tensor.dtype))
    return small


def _dtype_at(name: str, known: dict[str, torch.dtype], otherwise: torch.dtype) -> torch.dtype:
    while name and name not in known:
        name = name.rpartition(".")[0]
    return known.get(name, otherwise)
