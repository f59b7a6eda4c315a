"""Networks for inference: the same function, in the form that is fastest on this machine for this input.

BatchNorm is folded into the layer before it, each decomposed layer takes one of its exact forms
(`norton.deployment.exact_forms`), and the memory format is chosen; in channels-last on a CPU, weights are packed
(`norton.deployment.onednn`).  What is fastest is measured: each form of each layer alone, then in the whole network,
where neighbouring choices are tried too, since a layer alone does not tell what it costs those around it.  The dense
form of all layers is always among what is tried.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.progress import Progress
from torch import nn

from norton.common.errors import InputError, first_line, warn
from norton.deployment.assembling import assemble
from norton.deployment.checks import check_choice, check_example, check_outputs, outputs_of
from norton.deployment.folding import fold
from norton.deployment.record import Deployment, conditions
from norton.deployment.search import FormSearch, SearchBudget
from norton.graph.copies import copied
from norton.graph.inputs import Example, Inputs, inputs_of
from norton.graph.layers import network_in
from norton.measure.latency import keep_freed_memory

_KEPT = ("arch", "num_classes", "input_size", "input_batch")  # what networks say of themselves


@torch.no_grad()  # not inference_mode, whose tensors can neither be converted nor loaded into
def deploy(
    net: nn.Module,
    example: Example,
    *,
    choice: Deployment | str | Path | None = None,
    compile: bool = False,
    repeats: int = 5,
    search: SearchBudget | None = None,
    progress: bool = False,
) -> nn.Module:
    """A network for inference on inputs like `example`, with the same outputs as `net.eval()`.

    example: a batch (N, C, H, W), a tuple of several inputs, or a dict of arguments by name.  choice: of a network
    deployed before (its `.deployment`, or the file that was saved to), taken as it is; by default it is measured here,
    `repeats` times in the whole network, for as long as `search` says.  compile: by `torch.compile`, which takes
    minutes for large networks, for use under torch.inference_mode.  The result has its `Deployment` as `.deployment`;
    batches may have other sizes, for which it need not be the fastest choice.  On a CPU the process keeps memory that
    it frees from then on (`keep_freed_memory`), and the weights are held twice (`norton.deployment.onednn`, also for
    what is not a number).

    A network in training mode is deployed as for evaluation, with a warning.  Raises InputError for an example that the
    network does not take, outputs that differ by more than rounding, in float64 too, and a choice of another network,
    input or machine.  A network whose code asks for the sizes of images is recorded once more for each other size that
    it meets, and an InputError says so where it goes another way.
    """
    deployed = deploy_by(net, example, lambda known: loaded(choice), repeats, search, progress)
    return compiled(deployed, example) if compile else deployed


def loaded(choice: Deployment | str | Path | None) -> Deployment | None:
    """A choice, from a file where it is named by its path."""
    return choice if choice is None or isinstance(choice, Deployment) else Deployment.load(choice)


@torch.no_grad()
def deploy_by(
    net: nn.Module,
    example: Example,
    find: Callable[[Mapping[str, str]], Deployment | None],
    repeats: int,
    search: SearchBudget | None = None,
    progress: bool = False,
) -> nn.Module:
    """`deploy` by the choice that `find` has for the `conditions`; it is measured where there is none."""
    net = network_in(net)
    if net.training:
        warn("the network is in training mode; deployed as for evaluation")
    inputs = inputs_of(example)
    wanted = [(inputs, check_example(net, inputs))]
    # What is wrong in a folded layer may not show in an example of zeros.
    noise = inputs.map(lambda x: torch.randn_like(x) if x.is_floating_point() else x)
    wanted.append((noise, outputs_of(net, noise)))
    if inputs.tensors[0].device.type == "cpu":
        keep_freed_memory()
    folded = fold(net, inputs)
    known = conditions(folded, inputs)
    if (choice := find(known)) is None:
        with Progress(transient=True, disable=not progress) as bar, torch.inference_mode():
            choice = FormSearch(folded, inputs, repeats, search, bar).choose(known)
    else:
        check_choice(choice, known, folded)
    deployed = assemble(folded, choice.forms, choice.channels_last)
    dtype = next(x.dtype for x in [*inputs.tensors, *net.parameters()] if x.is_floating_point())
    try:
        for given, outputs in wanted:
            check_outputs(given.call(deployed), outputs, dtype)
    except InputError:
        if dtype == torch.float64:
            raise
        _check_in_float64(net, noise, choice)
        warn(
            "the deployed network is exact, but its weights are out of proportion, so that rounding changes its "
            "outputs by more than usual"
        )
    for name in _KEPT:
        if hasattr(net, name):
            setattr(deployed, name, getattr(net, name))
    deployed.deployment = choice
    return deployed


def _check_in_float64(net: nn.Module, inputs: Inputs, choice: Deployment) -> None:
    """Raise InputError where outputs differ by more than rounding in double precision too."""
    precise, given = copied(net).eval().double(), inputs.map(lambda x: x.double() if x.is_floating_point() else x)
    deployed = assemble(fold(precise, given), choice.forms, choice.channels_last)
    check_outputs(given.call(deployed), given.call(precise), torch.float64)


def compiled(net: nn.Module, example: Example) -> nn.Module:
    """By torch.compile, once run under torch.inference_mode, for which it is: elsewhere torch compiles it anew.

    Raises InputError where that does not work on this machine.
    """
    fast = torch.compile(net)
    try:
        with torch.inference_mode():
            inputs_of(example).call(fast)
    except Exception as error:  # whatever its back end and the compiler below it raise
        raise InputError(f"torch.compile does not work here ({first_line(error)}); deploy without compile") from error
    return fast
