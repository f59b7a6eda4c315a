"""Networks on torch's meta device: copies without values, and what passes through them at some input size."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.errors import InputError, first_line
from norton.graph.copies import held_tensors
from norton.graph.input_sizes import candidate_sizes
from norton.graph.lines import line_of

HOW_TO_DECLARE = "or give the network a method wiring() that declares its channel axes, see norton/models/resnet.py"


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
    copied = on_meta(net).train(training)
    return next(at_sizes(copied, candidate_sizes(net), copied))


def at_sizes(
    net: nn.Module, candidates: Sequence[tuple[int, ...]], run: Callable[[Tensor], Any]
) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Each of some input sizes (channels, height, width) that a network on the meta device takes, and what `run` gives.

    run: of images without values, what runs the network on them.  Raises InputError, naming the place, if the network
    takes none of the sizes.
    """
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    problems: list[str] = []
    for size in candidates:
        images = torch.empty(2, *size, device="meta", dtype=dtype)  # BatchNorm in training asks for two
        try:
            with torch.no_grad(), torch.device("meta"):  # for tensors that a forward pass makes
                result = run(images)
        except Exception as error:  # whatever the network's own code raises
            layer = f"layer {place}, " if (place := getattr(error, "place", "")) else ""
            problems.append(f"{layer}{line_of(error) or 'its forward pass'}: {first_line(error)}")
        else:
            yield size, result
    if len(problems) == len(candidates):
        tried = ", ".join("×".join(map(str, size)) for size in candidates)
        mode = "" if net.training else " in evaluation mode"
        raise InputError(
            f"{net._get_name()} takes no input of size {tried}{mode}: {problems[0]}; pass example=, an input or its "
            f"size (channels, height, width), make its forward pass free of decisions about values, {HOW_TO_DECLARE}"
        )
