"""Networks on torch's meta device: copies without values, and what passes through them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton.common.errors import InputError, first_line
from norton.graph.copies import deepcopied, held_tensors, scripted_in
from norton.graph.inputs import Inputs, candidate_inputs
from norton.graph.lines import line_of

HOW_TO_DECLARE = "or give the network a method wiring() that declares its channel axes, see norton/models/resnet.py"


def on_meta(net: nn.Module) -> nn.Module:
    """A copy of a network without values, made without copying them."""
    made = deepcopied(net, {id(tensor): _without_values(tensor) for tensor in held_tensors(net)})
    for layer in scripted_in(made):  # whose tensors Python does not hold
        for name, tensor in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
            setattr(layer, name, _without_values(tensor))
    return made


def _without_values(tensor: Tensor) -> Tensor:
    if tensor.is_mkldnn:  # of a deployed network; torch has no such layout on the meta device
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    bare = tensor.detach().to("meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def run_on_meta(net: nn.Module, training: bool) -> tuple[tuple[int, ...], Any]:
    """The first size (channels, height, width) that a network takes in training or evaluation mode, and what it gives.

    What it gives is on the meta device, without values.  Raises InputError if the network takes none of the sizes.
    """
    copied = on_meta(net).train(training)
    candidates = [candidate.to("meta") for candidate in candidate_inputs(net)]
    inputs, output = next(at_inputs(copied, candidates, lambda inputs: inputs.call(copied)))
    return tuple(inputs.tensors[0].shape[1:]), output


def at_inputs(
    net: nn.Module, candidates: Sequence[Inputs], run: Callable[[Inputs], Any]
) -> Iterator[tuple[Inputs, Any]]:
    """Each of some inputs that a network takes, and what `run`, which runs the network on them, gives.

    net: on the device of the inputs, which may be the meta device.  Raises InputError, naming the place, if the network
    takes none of them.
    """
    problems: list[Exception] = []
    for inputs in candidates:
        try:
            with torch.no_grad(), torch.device(inputs.tensors[0].device):  # for tensors that a forward pass makes
                result = run(inputs)
        except Exception as error:  # whatever the network's own code raises
            problems.append(error)
        else:
            yield inputs, result
    if len(problems) == len(candidates):
        tried = ", ".join(dict.fromkeys(inputs.shown() for inputs in candidates))
        mode = "" if net.training else " in evaluation mode"
        raise InputError(
            f"{net._get_name()} takes no input of size {tried}{mode}: {_told(problems[0])}; {_way_out(problems[0])}"
        )


def _told(error: Exception) -> str:
    layer = f"layer {place}, " if (place := getattr(error, "place", "")) else ""
    return f"{layer}{line_of(error) or 'its forward pass'}: {first_line(error)}"


def needs_values(error: Exception) -> bool:
    """Whether a network failed since torch asks for values that a tensor on the meta device has not."""
    return "meta" in str(error).lower()


def _way_out(error: Exception) -> str:
    if needs_values(error):
        return f"its forward pass needs values: pass example= with real data, {HOW_TO_DECLARE}"
    return (
        "pass example=, an input, its size (channels, height, width), a tuple of several inputs or a dict of "
        f"arguments by name, {HOW_TO_DECLARE}"
    )
