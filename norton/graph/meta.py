"""Networks on torch's meta device: copies without values, and what passes through them at some input size."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.common.errors import InputError, first_line
from norton.graph.copies import held_tensors
from norton.graph.input_sizes import candidate_sizes
from norton.graph.layers import ELEMENTWISE_LAYERS, NORM_LAYERS
from norton.graph.nodes import VALUE, place_of
from norton.graph.recording import HOW_TO_DECLARE, line_of, trace


def on_meta(net: nn.Module) -> nn.Module:
    """A copy of a network without values, made without copying them."""
    return copy.deepcopy(net, {id(tensor): _without_values(tensor) for tensor in held_tensors(net)})


def _without_values(tensor: Tensor) -> Tensor:
    if tensor.is_mkldnn:  # of a deployed network; torch has no such layout on the meta device
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    bare = tensor.detach().to("meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def run_on_meta(net: nn.Module, training: bool) -> tuple[tuple[int, ...], Any]:
    """The first of `candidate_sizes` that a network takes in training or evaluation mode, and what it returns.

    What it returns is on the meta device, without values.  Raises InputError if the network takes none of the sizes.
    """
    copied, candidates = on_meta(net).train(training), candidate_sizes(net)
    try:
        return run_at_some_size(copied, candidates)
    except InputError as error:
        try:  # a graph also holds tensors that are neither parameters nor buffers, and so not on the meta device
            graph = fx.GraphModule(copied, trace(copied), type(net).__name__)
        except InputError:
            raise error from None
        return run_at_some_size(graph, candidates)


@torch.no_grad()
def run_at_some_size(net: nn.Module, candidates: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], Any]:
    """Run a network on meta tensors of the first size that it takes; returns that size, and what came out.

    Of an `fx.GraphModule`, each node then holds what it computes, see `norton.graph.nodes.value_of`.  Raises InputError
    if the network takes none of the sizes.
    """
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    problems = []
    for size in candidates:
        images = torch.empty(2, *size, device="meta", dtype=dtype)  # BatchNorm in training asks for two
        runner = _ValueRecorder(net) if isinstance(net, fx.GraphModule) else None
        try:
            with torch.device("meta"):  # for tensors that a forward pass makes
                return size, runner.run(images) if runner else net(images)
        except Exception as error:  # whatever the network's own code raises
            place = place_of(runner.failed) if runner and runner.failed else line_of(error)
            problems.append(f"{f' at {place}' if place else ''}: {first_line(error)}")
    tried = ", ".join("×".join(map(str, size)) for size in candidates)
    decided = "" if isinstance(net, fx.GraphModule) else ", make its forward pass free of decisions about values"
    raise InputError(
        f"{net._get_name()} takes no input of size {tried}; it fails{problems[0]}; pass example=, an input or its "
        f"size (channels, height, width){decided}, {HOW_TO_DECLARE}"
    )


class _ValueRecorder(fx.Interpreter):
    """Runs a graph on the meta device, and leaves at each node what it computes; `failed`: the node that raised."""

    failed: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        try:
            n.meta[VALUE] = super().run_node(n)
        except Exception:
            self.failed = self.failed or n
            raise
        return n.meta[VALUE]

    def get_attr(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.to("meta") if isinstance(value, Tensor) else value  # a constant, or an attribute

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        # Shapes pass through these, and torch takes milliseconds for a BatchNorm without values.
        if isinstance(self.fetch_attr(target), (*NORM_LAYERS, *ELEMENTWISE_LAYERS)) and args:
            return args[0]
        return super().call_module(target, args, kwargs)
