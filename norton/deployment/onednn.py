"""Convolutions for a CPU as oneDNN wants them: the weight in its own layout, ReLU in the same pass.

Otherwise torch lays each weight out anew in every pass, and reads and writes the outputs once more for ReLU.  The
operator is the one that torch.compile puts into frozen networks (torch._inductor.fx_passes.mkldnn_fusion).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


class PackedConv2d(nn.Conv2d):
    """A convolution, then ReLU if `relu`.

    Where the operator does not serve (compilers, tracers, exports, counters; other devices, types; derivatives) it is
    torch's own.  The weight is held a second time, in oneDNN's layout, from the first pass on; copies and files do
    without.  oneDNN's ReLU makes zero of what is not a number.
    """

    relu = False
    traced_whole = True  # recorded as torch's own layers are
    _packed: Tensor | None = None
    _packed_from: tuple[Tensor, int] | None = None  # the weight and how often it was changed by then

    def forward(self, input: Tensor) -> Tensor:
        if not self._serves(input):
            y = super().forward(input)
            return F.relu(y) if self.relu else y
        geometry = self.padding, self.stride, self.dilation, self.groups
        if self._packed_from is None or self._packed_from[0] is not self.weight or self._packed_from[1] != self._age():
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(self.weight.to_mkldnn(), *geometry, input.shape)
            self._packed_from = self.weight, self._age()
        after = "relu" if self.relu else "none"
        y = torch.ops.mkldnn._convolution_pointwise(input, self._packed, self.bias, *geometry, after, [], "")
        y.rectified = self.relu
        return y

    def _age(self) -> int:
        return 0 if self.weight.is_inference() else self.weight._version  # which counts changes in place

    def _serves(self, x: Tensor) -> bool:
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack():
            return False
        if type(x) not in (Tensor, nn.Parameter) or x.ndim != 4 or x.shape[1] != self.in_channels or not x.numel():
            return False
        if not x.is_cpu or not x.dtype == self.weight.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
            return False
        backward = torch.is_grad_enabled() and any(one.requires_grad for one in (x, *self.parameters()))
        return not backward and forward_ad._current_level < 0

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        self._packed_from = None  # for the weight stays the same object
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None, "_packed_from": None}

    def extra_repr(self) -> str:
        return super().extra_repr() + ", relu=True" * self.relu


def pack_(net: nn.Module) -> nn.Module:
    """Turn the convolutions of a network, or a layer, into packed ones, where this build of torch has them.

    They change their class and stay the same objects, so that layers that are called in several places stay one.
    """
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        for layer in nn.Module.modules(net):
            if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                layer.__class__ = PackedConv2d
    return net


class JoinedReLU(nn.ReLU):
    """A ReLU that leaves what a packed convolution has rectified, and rectifies what else it is called for."""

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_compiling() and getattr(input, "rectified", False):
            input.rectified = False  # what code may do to it in place comes after
            return input
        return super().forward(input)


def join_relus_(net: nn.Module, relus: Mapping[str, str]) -> dict[str, str]:
    """Let packed convolutions compute the ReLUs that alone follow them, in place.

    relus: layer → the ReLU that alone takes what it gives.  Returns those that are joined now.
    """
    last = {layer: _last(net.get_submodule(layer)) for layer in relus}
    joined = {layer: relu for layer, relu in relus.items() if isinstance(last[layer], PackedConv2d)}
    for layer, relu in joined.items():
        last[layer].relu = True  # type: ignore[assignment]
        module = net.get_submodule(relu)
        if type(module) is nn.ReLU:
            module.__class__ = JoinedReLU
    return joined


def _last(layer: nn.Module) -> nn.Module:
    """The layer that computes last, in layers one after the other."""
    return _last(layer[-1]) if type(layer) is nn.Sequential and len(layer) else layer
