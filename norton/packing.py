"""Convolutions for a CPU as oneDNN wants them: the weight in its own layout, ReLU in the same pass.

Otherwise torch lays each weight out anew in every pass, and reads and writes the outputs once more for ReLU.  The
operator is the one that torch.compile puts into frozen networks (torch._inductor.fx_passes.mkldnn_fusion).
"""

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


class PackedConv2d(nn.Conv2d):
    """A convolution, then ReLU if `relu`.

    Where the operator does not serve (compilers and exports, other devices and types, gradients) it is torch's own.
    The layout is made in the first pass and lost with every copy and move; weights that are changed in place are not
    noticed.
    """

    relu = False
    _packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._serves(x):
            y = super().forward(x)
            return F.relu(y) if self.relu else y
        if self._packed is None:
            how = self.padding, self.stride, self.dilation, self.groups
            self._packed = torch._C._nn.mkldnn_reorder_conv2d_weight(self.weight.to_mkldnn(), *how, x.shape)
        after = "relu" if self.relu else "none"
        how = self.padding, self.stride, self.dilation, self.groups, after, [], ""
        return torch.ops.mkldnn._convolution_pointwise(x, self._packed, self.bias, *how)

    def _serves(self, x: Tensor) -> bool:
        gradients = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        if gradients or torch.compiler.is_compiling():
            return False
        return x.ndim == 4 and x.numel() > 0 and x.dtype == self.weight.dtype == torch.float32 and x.is_cpu

    def _apply(self, *args, **kwargs) -> nn.Module:
        self._packed = None
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._packed = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None}


def pack_(net: nn.Module) -> nn.Module:
    """Turn the convolutions of a network, or a layer, into packed ones, where this build of torch has them."""
    if torch.backends.mkldnn.is_available():
        for layer in net.modules():
            if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
                layer.__class__ = PackedConv2d
    return net


def join_relus_(net: fx.GraphModule) -> fx.GraphModule:
    """Let packed convolutions compute the ReLUs that alone follow them."""
    calls = {node: _last(net.get_submodule(node.target)) for node in net.graph.nodes if node.op == "call_module"}
    often = Counter(map(id, calls.values()))
    for node, conv in calls.items():
        after = next(iter(node.users), None)
        if not isinstance(conv, PackedConv2d) or often[id(conv)] > 1 or len(node.users) != 1:
            continue
        if _is_relu(net, after):
            conv.relu = True
            after.replace_all_uses_with(node)
            net.graph.erase_node(after)
    net.recompile()
    return net


def _last(layer: nn.Module) -> nn.Module:
    """The layer that computes last, in layers one after the other."""
    return _last(layer[-1]) if type(layer) is nn.Sequential and len(layer) else layer


def _is_relu(net: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(net.get_submodule(node.target), nn.ReLU)
    return node.target in (F.relu, torch.relu, torch.relu_, "relu", "relu_")
