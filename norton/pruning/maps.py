"""Scores of filters from what they do to calibration images.

The map of a filter is taken after the BatchNorm that takes its layer's output directly, and at the output itself where
none does; before any activation.  There the network stays the same if a map is set to zero as if its filter is pruned:
the channel's BatchNorm goes with it.  It is the last place that is a layer's own, for sums and activations may follow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from norton.calibration.batches import Images, batches_of, count_of, taken_by
from norton.common.errors import InputError
from norton.graph.inputs import Inputs
from norton.graph.layers import filter_dimension, in_form, width
from norton.graph.logits import logits_in, resized_to
from norton.pruning.criteria.kinds import CRITERIA, MapCriterion

Sources = Mapping[str, nn.Module]  # layer → the module whose output is its map

NO_CLASS = -100  # torch's own label for what has none
BATCH = 32  # images computed at a time; all layers' maps and gradients of so many are held at once


def map_scores(
    net: nn.Module,
    layers: Sequence[str],
    criterion: str,
    images: Images | None,
    labels: Tensor | None = None,
    *,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Layer → (O,) float64 score of its filters on the CPU, averaged over images, for the layers that images pass.

    images: (N, C, H, W), transformed as for evaluation, or batches of what the network takes.  labels: for criteria
    that look at gradients, classes (N,), or masks (N, H, W) where the network gives some per position, as a tensor or
    `out` of a dict, which are resized to them; -100 stands for none.
    A layer that only training passes, such as one of an auxiliary head, is left out.

    Raises InputError for missing or unfitting images and labels, values that are not finite, and a layer whose output
    is no map.
    """
    judge: MapCriterion = CRITERIA[criterion]
    batches, labels = checked_data(judge, images, labels)
    modules = dict(net.named_modules())
    device = next(net.parameters()).device
    sums: dict[str, Tensor] = {}

    def add(name: str, *found: Tensor) -> None:
        try:
            shaped = tuple(as_maps(output, modules[name]) for output in found)
            scored = judge.per_image(judge.checked(shaped if judge.needs_labels else shaped[0]))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        sums[name] = sums.get(name, 0) + scored.sum(0).cpu()

    parts = list(zip(batches, labels.split([batch.count for batch in batches]), strict=True))
    training = net.training
    net.eval()
    try:
        with in_form(net, "fast"):
            one = batches[0].first(1).to(device)
            with taken_by(net, one):
                sources = map_sources(net, layers, one)
            for x, y in track(parts, f"{criterion} of images", disable=not progress, transient=True):
                score_batch = _score_gradients if judge.needs_labels else _score_maps
                score_batch(net, sources, x.to(device), y.to(device), add)
    finally:
        net.train(training)
    return {name: judge.finite(sums[name] / count_of(batches)) for name in layers if name in sums}


def map_sources(net: nn.Module, layers: Sequence[str], inputs: Inputs) -> dict[str, nn.Module]:
    """Layer → the module whose output is its map: the BatchNorm that takes its output directly, else itself.

    Layers that the image does not pass are left out.
    """
    modules = dict(net.named_modules())
    outputs: dict[str, Tensor] = {}  # held, so that no other tensor can take the place of one
    sources: dict[str, nn.Module] = {}

    def remember(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            outputs[name] = output
            sources.setdefault(name, module)

        return hook

    def follow(module: nn.Module, inputs: tuple) -> None:
        for name, output in outputs.items():
            if inputs[0] is output:
                sources[name] = module

    handles = [modules[name].register_forward_hook(remember(name)) for name in layers]
    handles += [m.register_forward_pre_hook(follow) for m in modules.values() if isinstance(m, _BatchNorm)]
    with _removed_afterwards(handles), torch.no_grad():
        inputs.call(net)
    return sources


def _score_maps(net: nn.Module, sources: Sources, inputs: Inputs, labels: Tensor, add: Callable) -> None:
    # At once, in the hook: an activation may work in place, and maps of all layers take more memory than of one.
    handles = [
        module.register_forward_hook(lambda module, inputs, output, name=name: add(name, output))
        for name, module in sources.items()
    ]
    with _removed_afterwards(handles), torch.no_grad():
        inputs.call(net)


def _score_gradients(net: nn.Module, sources: Sources, inputs: Inputs, labels: Tensor, add: Callable) -> None:
    found: list[tuple[str, Tensor]] = []

    def hook(name: str) -> Callable:
        def remember(module: nn.Module, inputs: tuple, output: Tensor) -> Tensor:
            found.append((name, output))
            return output.clone()  # for activations that work in place

        return remember

    handles = [module.register_forward_hook(hook(name)) for name, module in sources.items()]
    with _removed_afterwards(handles), torch.enable_grad():
        # Also where all parameters are frozen.
        logits = inputs.map(lambda x: x.clone().requires_grad_(x.is_floating_point())).call(net)
        logits = logits_in(logits)
        if isinstance(logits, Tensor):
            logits = resized_to(logits, labels)
        check_labels(labels, logits)
        loss = F.cross_entropy(logits, labels, ignore_index=NO_CLASS, reduction="sum")  # each image's own loss
        gradients = torch.autograd.grad(loss, [output for _, output in found], materialize_grads=True)
    with torch.no_grad():
        for (name, output), gradient in zip(found, gradients, strict=True):
            add(name, output, gradient)


def as_maps(output: Tensor, layer: nn.Module) -> Tensor:
    """(N, O, H, W) of what a layer gives, with ones where it has less dimensions.

    A convolution has its filters in dimension 1, a linear layer in the last one: (N, O), (N, tokens, O) or channels
    last, (N, H, W, O).
    """
    filters, dim = width(layer), filter_dimension(layer)
    if not 2 <= output.ndim <= 4 or output.shape[dim] != filters:
        raise InputError(
            f"its output of shape {tuple(output.shape)} is no map of its {filters} filters, (N, O, H, W) or, of a "
            "linear layer, (N, ..., O); score weights"
        )
    maps = output.movedim(dim, 1)
    return maps.reshape(*maps.shape, *[1] * (4 - maps.ndim))


def checked_data(criterion: MapCriterion, images: Images | None, labels: Tensor | None) -> tuple[list[Inputs], Tensor]:
    """Batches and their labels, zeros where none are needed, or an InputError that says what to pass."""
    labelled = criterion.needs_labels
    if images is None or (labelled and labels is None):
        what = "images= (N, C, H, W)" + (" and labels= (N,)" if labelled else "")
        raise InputError(
            f"criterion {criterion.name!r} looks at what filters do to data, and there are none: pass {what}, a few "
            "hundred of them; from the shell data=NAME and calibration.images=512"
        )
    if isinstance(images, Tensor) and (images.ndim != 4 or not len(images)):
        raise InputError(f"images of shape {tuple(images.shape)}; expected (N, C, H, W), at least one")
    batches = batches_of(images, BATCH)
    count = count_of(batches)
    if labels is None or not labelled:
        return batches, torch.zeros(count, dtype=torch.long)
    if labels.shape[:1] != (count,) or labels.is_floating_point():
        raise InputError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype}; expected a class for each of the "
            f"{count} images, ({count},) whole numbers, or for each position of each"
        )
    return batches, labels.long()


def check_labels(labels: Tensor, logits: Any) -> None:
    """Raise InputError where labels do not fit what a network gives for their images."""
    if not isinstance(logits, Tensor):
        raise InputError(
            f"the network gives a {type(logits).__name__}, and labels are for one tensor (N, classes, ...); put it "
            "into a small module that gives that, or score without labels"
        )
    if logits.ndim < 2 or (len(logits), *logits.shape[2:]) != labels.shape:
        places = (
            "" if logits.ndim < 3 else f", and a label for each position, (N, {', '.join(map(str, logits.shape[2:]))})"
        )
        raise InputError(
            f"the network gives {tuple(logits.shape)} for labels of shape {tuple(labels.shape)}; expected "
            f"(N, classes, ...){places}"
        )
    known = labels[labels != NO_CLASS]
    if len(known) and (known.min() < 0 or known.max() >= logits.shape[1]):
        wrong = int(known.min() if known.min() < 0 else known.max())
        raise InputError(f"label {wrong} is out of range; the network tells classes 0 to {logits.shape[1] - 1} apart")


@contextmanager
def _removed_afterwards(handles: Sequence) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
