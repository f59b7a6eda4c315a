"""`norton.prune`, and what can be said of it before any weight is looked at."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from norton.calibration import Calibration, ImageSource, check_images, read_images
from norton.calibration.compensation import compensated
from norton.common.checks import check_type
from norton.common.errors import warn
from norton.graph import wiring_of
from norton.graph.copies import copied
from norton.graph.inputs import Example, remember_example_
from norton.graph.layers import check_has_values, network_in
from norton.graph.plan import record_step
from norton.graph.slicing import cut_
from norton.graph.wiring import Wiring
from norton.graph.wrapping import kept_like_
from norton.pruning.allocation import Allocation, read_rates
from norton.pruning.channels import choose_channels
from norton.pruning.named_filters import named_filters
from norton.pruning.options import CriterionSetting, PruneOptions
from norton.pruning.scoring import Scoring


def prune(
    net: nn.Module,
    compress_rate: str | float | Sequence[float] | Mapping[str, float | None] | None,
    criterion: CriterionSetting = "pabs",
    *,
    options: PruneOptions = PruneOptions(),
    images: ImageSource | None = None,
    labels: Tensor | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    example: Example | None = None,
    progress: bool = False,
) -> nn.Module:
    """A copy of `net` without the filters that `compress_rate` removes, decomposed or not.

    Works on any network whose forward pass can be traced, or that declares its channel axes, see `norton.wiring_of`;
    `norton.wiring_of(net).left_whole` says what cannot be pruned, and why.  Precision, memory format, DataParallel and
    torch.compile stay.  example: an input or its size (channels, height, width), a tuple of several, or a dict by name,
    if the network states none (`input_size`, `example_input_array`); real data where it needs values.
    compress_rate: the fraction removed per layer, as published (`[0.6]*6+[0.8]*7`); one number, of every layer that can
    be pruned; or patterns of layer names with a number each, of which the first that matches decides.  None for the
    criterion `index` alone.

    criterion: scores the filters; a name, `{"weighted": {"l2": 0.7, "fpgm": 0.3}}` of normalised scores, or
    `{"intersection": ["l2", "fpgm"]}`: a filter goes only if each would remove it, so fewer go than the rates ask.
    options: how scores become filters that go, a `PruneOptions`.

    images: (N, C, H, W), batches, each an example as above, or a DataLoader, see `norton.calibration.read_images`;
    labels: (N,) or (N, H, W), those of the batches if None: for criteria that look at data.  What is left of the layers
    is fitted to what they gave before on these images, unless `options.compensate` is None; calibration: how; if
    sequential, BatchNorms follow.  seed: of the criterion `random`.

    Warns where nothing is removed though rates ask for it.  Raises InputError for unknown names, bad rates, filters or
    weights, and missing data.
    """
    given, net = net, network_in(net)
    check_has_values(net)
    check_type("options", options, PruneOptions)
    how = Allocation(None if compress_rate is None else read_rates(compress_rate), options)
    wiring = wiring_of(net, example)
    images, labels = read_images(net, images, labels)
    named = named_filters(net, wiring, criterion, options.filters, how.compress_rate)
    scoring = Scoring(criterion, options, named, images, labels, seed, progress)
    if fits := options.compensates(images):
        check_images(net, images)
    rated, small = how.rated(net, wiring), copied(net)
    remember_example_(small, example)
    keep = choose_channels(small, wiring, rated, how, scoring)
    if not keep and (spared := how.spared(net, wiring)):
        why = "; ".join(f"{layer}: {reason}" for layer, reason in list(spared.items())[:3])
        warnings.warn(f"nothing is removed, though rates ask for it: {why}", stacklevel=2)
    step = {"op": "prune", "keep": {wiring.name(axis): list(map(int, channels)) for axis, channels in keep.items()}}
    wiring.check_cut(keep)
    cut_(small, wiring, keep)  # as replaying the step does, without finding the wiring again
    if options.compensate == "outputs" and not fits:
        warn("compensate=outputs without calibration images: not compensated")
    if fits:
        small = compensated(net, small, wiring, keep, images, calibration or Calibration(), progress=progress)
    record_step(small, step)
    return kept_like_(given, small)


def check_prune(
    net: nn.Module, compress_rate: Any, criterion: CriterionSetting = "pabs", *, options: PruneOptions = PruneOptions()
) -> None:
    """Raise InputError for what `prune` would refuse before it looks at weights or data."""
    net = network_in(net)
    rates = None if compress_rate is None else read_rates(compress_rate)
    wiring = wiring_of(net)
    Scoring(criterion, options)
    named_filters(net, wiring, criterion, options.filters, rates)
    Allocation(rates, options).rated(net, wiring)


def spared(
    net: nn.Module, wiring: Wiring, compress_rate: Any, *, options: PruneOptions = PruneOptions()
) -> dict[str, str]:
    """First writer of each axis that `prune` would cut at these rates, but for min_filters or round_to → why."""
    rates = None if compress_rate is None else read_rates(compress_rate)
    return Allocation(rates, options).spared(net, wiring)
