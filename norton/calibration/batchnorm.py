"""BatchNorm after a step of compression: leave its statistics, move their means, or estimate them again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from norton.calibration.batches import batches_of, count_of, taken_by
from norton.calibration.loaders import ImageSource, read_images
from norton.common.errors import InputError
from norton.graph.inputs import Inputs
from norton.graph.layers import in_form, is_norm

CHOICES = ("leave", "means", "reestimate")


class Adapted(NamedTuple):
    """What became of BatchNorm: one of CHOICES, and the relative error of the network's outputs with each."""

    choice: str
    errors: dict[str, float]

    def __str__(self) -> str:
        done = {"leave": "left as it is", "means": "means moved", "reestimate": "estimated again"}
        others = ", ".join(f"{done[way]} {self.errors[way]:.3g}" for way in self.errors if way != self.choice)
        return f"BatchNorm {done[self.choice]}: relative error of the outputs {self.errors[self.choice]:.3g} ({others})"


@torch.no_grad()
def adapt_batchnorm_(
    net: nn.Module, dense: nn.Module, images: ImageSource, fresh: ImageSource, batch_size: int = 128
) -> Adapted | None:
    """Do to the statistics of every BatchNorm, in place, what keeps a network nearest to the dense one.

    They are left, or their means are moved to those over `images`, or means and variances are estimated again: where a
    layer was fitted to the outputs that it gave, estimates from a few hundred images cost more than they mend; where
    weights alone were fitted at low ranks, nothing works without.

    dense: gives the outputs that count.  images: unlabelled, as for training: with its augmentation.  fresh: images as
    for evaluation, of which neither fitting nor estimating has seen any.  Returns None for a network without BatchNorm,
    or whose outputs cannot be compared.  Raises InputError for fewer images than two.
    """
    norms = [layer for layer in nn.Module.modules(net) if is_norm(layer)]
    if not norms:
        return None
    images, fresh = (read_images(dense, some)[0] for some in (images, fresh))
    batches = batches_of(fresh, batch_size, norms[0].running_mean.device)
    wanted = _outputs(dense, batches)
    before = _statistics(norms)
    found, errors = {"leave": before}, {}
    for choice, estimate in (("means", move_means_), ("reestimate", reestimate_batchnorm_)):
        estimate(net, images, batch_size)
        found[choice] = _statistics(norms)
        _set_(norms, before)
    for choice in CHOICES:
        _set_(norms, found[choice])
        error = _relative_error(_outputs(net, batches), wanted)
        if error is None:
            _set_(norms, before)
            return None
        errors[choice] = error
    best = min(CHOICES, key=lambda choice: _comparable(errors[choice]))  # of equal ones the first, which changes least
    _set_(norms, found[best])
    return Adapted(best, errors)


@torch.no_grad()
def reestimate_batchnorm_(net: nn.Module, images: ImageSource, batch_size: int = 128) -> nn.Module:
    """Replace the statistics of every BatchNorm by their averages over `images`, in place; nothing else changes.

    images: as `norton.decompose` takes them, transformed as for evaluation.  A step of compression shifts every layer's
    output, and the old statistics normalise by what is no longer there.  Each batch counts the same, so a last, smaller
    one is left out.  Raises InputError for fewer images than two.
    """
    norms = [layer for layer in nn.Module.modules(net) if is_norm(layer)]
    if not norms:
        return net
    batches = _equal_batches(net, images, batch_size)
    momenta = [layer.momentum for layer in norms]
    with _evaluating(net):
        for layer in norms:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        try:
            _run(net, batches)
        finally:
            for layer, momentum in zip(norms, momenta, strict=True):
                layer.momentum = momentum
    return net


@torch.no_grad()
def move_means_(net: nn.Module, images: ImageSource, batch_size: int = 128) -> nn.Module:
    """Replace the means alone of every BatchNorm by their averages over `images`, in place, as each comes to its turn.

    images, batch_size and errors: as for `reestimate_batchnorm_`.
    """
    norms = [layer for layer in nn.Module.modules(net) if is_norm(layer)]
    if not norms:
        return net
    batches = _equal_batches(net, images, batch_size)
    sums, calls = [torch.zeros_like(layer.running_mean) for layer in norms], [0] * len(norms)

    def move(place: int, layer: Any, x: Tensor) -> None:
        mean = x.mean([dim for dim in range(x.dim()) if dim != 1])
        layer.running_mean.copy_(mean)  # so that what follows reads what it will read
        sums[place] += mean
        calls[place] += 1

    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, place=place: move(place, layer, args[0]))
        for place, layer in enumerate(norms)
    ]
    try:
        with _evaluating(net):
            _run(net, batches)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, total, count in zip(norms, sums, calls, strict=True):
        if count:
            layer.running_mean.copy_(total / count)
    return net


def _equal_batches(net: nn.Module, images: ImageSource, batch_size: int) -> list[Inputs]:
    """Batches of the same size, which count the same; those of inputs that are no images stay as they are."""
    images, _ = read_images(net, images)
    if isinstance(images, Tensor):
        batch_size = max(2, min(batch_size, len(images)))
    batches = batches_of(images, batch_size, next(net.parameters()).device)
    if (count := count_of(batches)) < 2:
        raise InputError(f"BatchNorm cannot be re-estimated from {count} images; use a few hundred")
    return [batch for batch in batches if batch.count == batch_size] if isinstance(images, Tensor) else batches


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    before = {layer: layer.training for layer in nn.Module.modules(net)}
    net.eval()
    try:
        yield
    finally:
        for layer, training in before.items():
            layer.training = training


def _run(net: nn.Module, batches: list[Inputs]) -> list[Any]:
    found = []
    with in_form(net, "fast"):
        for batch in batches:
            with taken_by(net, batch):
                found.append(batch.call(net))
    return found


def _outputs(net: nn.Module, batches: list[Inputs]) -> list[list[Tensor]]:
    """The tensors of numbers that a network gives for each batch, in evaluation mode."""
    with _evaluating(net):
        found = [tree_leaves(output) for output in _run(net, batches)]
    return [[x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()] for leaves in found]


def _relative_error(found: list[list[Tensor]], wanted: list[list[Tensor]]) -> float | None:
    """Σ|y - t|² / Σ|t - mean t|² over all images, averaged over what a network gives; None where shapes differ."""
    shapes, expected = ([[x.shape for x in leaves] for leaves in some] for some in (found, wanted))
    if shapes != expected or not all(expected) or len({len(leaves) for leaves in expected}) > 1:
        return None
    ratios = []
    for ours, theirs in zip(zip(*found, strict=True), zip(*wanted, strict=True), strict=True):
        if len({x.shape[1:] for x in theirs}) > 1 or not theirs[0].dim():
            return None
        y, t = torch.cat(ours).double(), torch.cat(theirs).double()
        spread = (t - t.mean(0)).square().sum()
        ratios.append(((y - t).square().sum() / spread.clamp_min(torch.finfo(t.dtype).tiny)).item())
    return sum(ratios) / len(ratios)


def _comparable(error: float) -> float:
    """An error that is undefined is worse than any other."""
    return math.inf if math.isnan(error) else error


def _statistics(norms: list[Any]) -> list[tuple[Tensor, ...]]:
    return [tuple(x.clone() for x in (n.running_mean, n.running_var, n.num_batches_tracked)) for n in norms]


def _set_(norms: list[Any], statistics: list[tuple[Tensor, ...]]) -> None:
    for layer, values in zip(norms, statistics, strict=True):
        for own, value in zip((layer.running_mean, layer.running_var, layer.num_batches_tracked), values, strict=True):
            own.copy_(value)
