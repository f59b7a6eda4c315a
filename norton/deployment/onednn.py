"""Convolutions for a CPU as oneDNN wants them: the weight in its own layout, ReLU in the same pass.

Otherwise torch lays each weight out anew in every pass, and reads and writes the outputs once more for ReLU.  The
operator is the one that torch.compile puts into frozen networks (torch._inductor.fx_passes.mkldnn_fusion).
"""

from collections import Counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.autograd import forward_ad


class PackedConv2d(nn.Conv2d):
    """A convolution, then ReLU if `relu`.

    Where the operator does not serve (compilers, tracers, exports, counters; other devices, types; derivatives) it is
    torch's own.  The weight is held a second time, in oneDNN's layout, from the first pass on; copies and files do
    without.  oneDNN's ReLU makes zero of what is not a number.
    """

    relu = False
    traced_whole = True  # by torch.fx, as torch's own layers are
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
        return torch.ops.mkldnn._convolution_pointwise(input, self._packed, self.bias, *geometry, after, [], "")

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


def join_relus_(net: fx.GraphModule) -> fx.GraphModule:
    """Let packed convolutions compute the ReLUs that alone follow them."""
    calls = {node: _last(net.get_submodule(node.target)) for node in net.graph.nodes if node.op == "call_module"}
    often = Counter(map(id, calls.values()))
    for node, conv in calls.items():
        if not isinstance(conv, PackedConv2d) or often[id(conv)] > 1 or len(node.users) != 1:
            continue
        [after] = node.users
        if _is_relu(net, after):
            conv.relu = True
            after.replace_all_uses_with(node)
            net.graph.erase_node(after)
    net.delete_all_unused_submodules()
    net.recompile()
    return net


def _last(layer: nn.Module) -> nn.Module:
    """The layer that computes last, in layers one after the other."""
    return _last(layer[-1]) if type(layer) is nn.Sequential and len(layer) else layer


def _is_relu(net: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(net.get_submodule(node.target), nn.ReLU)
    return node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_")
