"""What a deployed network does with its images before its own code runs: lays them out, and knows their size."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from norton.deployment.following import check_follow
from norton.deployment.layouts import Reshaping, laid_out
from norton.graph.inputs import Inputs


class Entrance:
    """A hook before the forward pass.

    layout: the memory format that images get, if any.  folded, joined: as for `check_follow`.  sizes: of the inputs
    for which that was checked; None where the network does not decide by sizes.
    """

    def __init__(
        self,
        layout: torch.memory_format | None,
        folded: Mapping[str, str],
        joined: Mapping[str, str],
        sizes: set[tuple[torch.Size, ...]] | None,
    ):
        self.layout, self.folded, self.joined, self.sizes = layout, folded, joined, sizes

    def __call__(self, net: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.sizes is not None and not torch.compiler.is_compiling():
            self._check(net, Inputs(args, kwargs))
        if self.layout is None:
            return args, kwargs
        return tree_map(partial(laid_out, layout=self.layout), (args, kwargs))

    def _check(self, net: nn.Module, inputs: Inputs) -> None:
        assert self.sizes is not None
        sizes = sizes_of(inputs)
        if sizes not in self.sizes and not any(x.is_meta for x in inputs.tensors):
            check_follow(net, inputs, self.folded, self.joined)
            self.sizes.add(sizes)


def sizes_of(inputs: Inputs) -> tuple[torch.Size, ...]:
    """The sizes of all tensors."""
    return tuple(x.shape for x in inputs.tensors)


class ReshapingBegins:
    """A hook before the forward pass, and `ReshapingEnds` one behind it."""

    def __call__(self, net: nn.Module, args: tuple) -> None:
        Reshaping().__enter__()


class ReshapingEnds:
    def __call__(self, net: nn.Module, args: tuple, output: Any) -> None:
        Reshaping().__exit__(None, None, None)


_HOOKS = (Entrance, ReshapingBegins, ReshapingEnds)


def enter_by_(net: nn.Module, entrance: Entrance, reshaping: bool) -> nn.Module:
    """Give a network its hooks, in place."""
    net.register_forward_pre_hook(entrance, with_kwargs=True)
    if reshaping:
        net.register_forward_pre_hook(ReshapingBegins())
        net.register_forward_hook(ReshapingEnds(), always_call=True)
    return net


def without_entrance_(net: nn.Module) -> nn.Module:
    """Take away what `enter_by_` gave, in place."""
    for hooks in (net._forward_pre_hooks, net._forward_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, _HOOKS)]:
            del hooks[key]
            for kinds in (net._forward_pre_hooks_with_kwargs, net._forward_hooks_with_kwargs):
                kinds.pop(key, None)
            net._forward_hooks_always_called.pop(key, None)
    return net


def without_layout_(net: nn.Module) -> nn.Module:
    """Let a deployed network take images in the memory format that they have, in place."""
    for hook in net._forward_pre_hooks.values():
        if isinstance(hook, Entrance):
            hook.layout = None
    return net
