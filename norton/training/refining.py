"""Refinement: minutes of descent on unlabelled images, until a compressed network gives what the dense one gives.

Decomposing and pruning fit one layer after the other.  Here all factors, weights and scales move together, see
`norton.training.descent`.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from norton.calibration import ImageSource, check_images, read_images
from norton.calibration.batches import Images, count_of
from norton.common.errors import InputError, warn
from norton.graph.copies import copied
from norton.graph.layers import check_has_values, is_decomposed, network_in
from norton.graph.wrapping import kept_like_
from norton.training.descent import Clock, Descent, Refining

STATE = "refine.pt"  # in the folder of a refinement
HELD_OUT, MOST_HELD_OUT = 0.2, 256  # of the images, where no others are given to measure by


class Refined(NamedTuple):
    """A refined network, the distance from the dense one before and after, and what it took."""

    net: nn.Module
    before: float
    after: float
    steps: int
    images: int  # that the distance was measured on

    def __str__(self) -> str:
        return (
            f"refined in {self.steps} steps: distance from the dense network {self.before:.3g} → {self.after:.3g}, on "
            f"{self.images} images that it was not trained on"
        )


def refine(
    net: nn.Module,
    dense: nn.Module,
    images: ImageSource,
    *,
    minutes: float | None = 5.0,
    steps: int | None = None,
    held_out: ImageSource | None = None,
    skip: Iterable[str] = (),
    folder: str | Path | None = None,
    progress: bool = False,
    **options: Any,
) -> nn.Module:
    """A copy of `net` that gives what `dense` gives more nearly, never less nearly; without labels.

    images: as `norton.decompose` takes them; a few hundred at least.  held_out: others, on which the distance is
    measured; where None, a fifth of `images`, at most 256.  minutes, steps: the limit, see `Refining`, which has the
    other options.  skip: patterns of layers whose parameters stay; what is frozen stays, too.  folder: takes the state,
    so that a refinement that was stopped goes on.

    Raises InputError for images or settings that are none, a pattern that matches no layer, and networks whose outputs
    cannot be compared, see `Answers`.
    """
    how = Refining(minutes=minutes, steps=steps, **options)
    return refined(net, dense, images, how, held_out=held_out, skip=skip, folder=folder, progress=progress).net


def refined(
    net: nn.Module,
    dense: nn.Module,
    images: ImageSource,
    how: Refining,
    *,
    held_out: ImageSource | None = None,
    skip: Iterable[str] = (),
    folder: str | Path | None = None,
    progress: bool = False,
) -> Refined:
    """As `refine`, with what it came to."""
    clock = Clock(how.minutes, how.steps)
    given, net, dense = net, network_in(net), network_in(dense)
    check_has_values(net)
    images, fresh = (None if some is None else read_images(dense, some)[0] for some in (images, held_out))
    if images is None:
        raise InputError("refine takes unlabelled images; give a few hundred")
    check_images(net, images)
    if fresh is None:
        images, fresh = split(images, how.seed)
    else:
        check_images(net, fresh)
    run = Descent(net, dense, images, fresh, how, trained(net, skip), clock)
    state = None if folder is None else Path(folder) / STATE
    if state is not None and state.exists():
        run.resume(state)
    run.go(state, progress)
    small = copied(net)
    small.load_state_dict(run.best)
    return Refined(kept_like_(given, small), run.before, run.nearest, clock.steps_gone, count_of(run.fresh))


def split(images: Images, seed: int) -> tuple[Images, Images]:
    """Images to train on, and others to measure by; the same ones, with a warning, where there is one alone."""
    if isinstance(images, Tensor):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).to(images.device)
        count = min(MOST_HELD_OUT, round(HELD_OUT * len(images)))
        few = len(images) < 2
        parts = images[order[count or 1 :]], images[order[: count or 1]]
    else:
        count = max(1, round(HELD_OUT * len(images)))
        few = len(images) < 2
        parts = images[:-count], images[-count:]
    if few:
        warn("refine has one image, or one batch, to train on and to measure by; give a few hundred images")
        return images, images
    return parts


def trained(net: nn.Module, skip: Iterable[str]) -> list[str]:
    """The names of the parameters that may move.  Raises InputError for a pattern that matches no layer with any."""
    decomposed = {name for name, layer in net.named_modules() if is_decomposed(layer)}
    layers: dict[str, list[str]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            parts = name.split(".")
            above = [".".join(parts[:count]) for count in range(len(parts))]
            layers.setdefault(next((one for one in above if one in decomposed), above[-1]), []).append(name)
    patterns = [skip] if isinstance(skip, str) else list(skip)
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in layers):
            some = ", ".join([*layers][:3])
            raise InputError(f"skip: pattern {pattern!r} matches none of the {len(layers)} layers: {some}")
    return [
        name
        for layer, names in layers.items()
        if not any(fnmatchcase(layer, pattern) for pattern in patterns)
        for name in names
    ]
