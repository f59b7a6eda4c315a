"""The objective `outputs`: compress such that layers give what the network's layers gave before, on calibration images.

No labels and no training step.  Layers are compressed in the order in which they are computed.  With S the covariance
of the patches x' that a layer reads in the network *as compressed so far*, and y = W x + b what it gave before, least
squares first move its weight to

    W* = argmin E‖y - W* x' - b*‖² + λ‖W* - W‖²,

which takes up the error of the layers before; then W* is decomposed, in weights first, then in the metric of S.  Where
`sequential` is false, all layers are fitted to what they read in the network before, and W* is W.

Pruning is made up for in the same way (`norton.calibration.compensation`): layers then have less inputs and filters.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Self

import psutil
import torch
from rich.progress import track
from torch import Tensor, nn

from norton.calibration.batches import Images, batches_of, count_of, taken_by
from norton.calibration.input_moments import InputMoments, count_positions, gather_moments
from norton.calibration.metric import GroupedMetric, Metric
from norton.calibration.precision import as_float32, images_for, rounded_like_
from norton.calibration.replay import Replay
from norton.calibration.settings import Calibration, check_images
from norton.common.errors import InputError, warn
from norton.graph.copies import copied, is_hooked, replace_
from norton.graph.layers import as_dense, groups_of, in_form, is_norm, set_form_, weight_of

# So many of a layer's patches are looked at per number of a filter, drawn evenly from all images, but not less than:
_PATCHES_PER_NUMBER, _PATCHES_AT_LEAST = 64, 50_000
_COPIES = 6  # of the second moments in float64 that are held at once

# (target, the filters (O, C, kh, kw) or (O, C); metric) → the layer; metric None: nothing is known but the weight
LayerFit = Callable[[Tensor, Metric | None], nn.Module]


@torch.no_grad()
def fit_to_outputs(
    before: nn.Module,
    small: nn.Module,
    fits: Mapping[str, LayerFit],
    images: Images,
    how: Calibration,
    *,
    kept: Mapping[str, Tensor] | None = None,
    read: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    doing: str = "fit to outputs",
) -> nn.Module:
    """A copy of `small` whose layers are fitted, one after the other, to what those of `before` give.

    fits: layer → what makes the layer that takes its place.  images: (N, C, H, W), transformed as for evaluation,
    or batches, see `norton.calibration.batches`.
    kept: layer → the filters of `before`, for a BatchNorm the channels, that `small` still has, where it has not all.
    read: layer → the channels of what it reads in `before` that it reads in `small`, where these are not all.
    doing: what the bar shows.

    Networks in half precision are fitted in float32, what `fits` take included, and the result is rounded to theirs.
    Biases are corrected so that each output keeps its mean; where a layer has none, a BatchNorm that alone reads it is.
    In the sequential form the means of all BatchNorms follow those of their inputs.

    Warns of layers that the images do not reach, that are called several times, have hooks or read what values choose
    (the boxes that a detector finds), which are fitted to their weights, of too few images, and where memory asks for a
    cheaper form.  Raises InputError for images that do not fit, values that are not finite, and a network that calls
    its layers in another order for other images.
    """
    check_images(before, images)
    images = images_for(before, images)
    before, result = as_float32(before), copied(as_float32(small)).eval()
    new: dict[str, nn.Module] = {}
    with ExitStack() as forms:
        forms.enter_context(in_form(result, "fast"))
        fitting = _Fitting.prepared(before, result, images, how, kept or {}, read or {})
        forms.callback(fitting.close)
        for name in track(fitting.order(fits), doing, disable=not progress, transient=True):
            layer = result.get_submodule(name)
            if name in fits:
                new[name] = fitting.fitted(name, layer, fits[name])
                new[name].train(small.get_submodule(name).training)
                forms.enter_context(in_form(new[name], "fast"))
                replace_(result, {layer: new[name]})
            else:
                fitting.shift_mean_(name, layer)
    for name in sorted(fits.keys() - fitting.after.calls.keys()):
        layer = result.get_submodule(name)
        if layer not in new.values():  # else it is another name of one that was reached
            fitting.unreached.append(name)
            replace_(result, {layer: fits[name](weight_of(layer), None)})
    fitting.warn_of_exceptions(count_of(fitting.after.batches))
    modes = {name: layer.training for name, layer in small.named_modules()}
    for name, layer in result.named_modules():
        layer.training = modes.get(name, layer.training)
    return rounded_like_(result, small)


@dataclass
class _Fitting:
    """Two networks replayed in step on the calibration images: as it was, and as it becomes, which is `result`.

    after: the replay of `result` where layers are fitted sequentially, else the same as `before`.  memory: bytes that
    may be taken.  kept, read: see `fit_to_outputs`.  The lists are layers where something was done otherwise.
    """

    result: nn.Module
    before: Replay
    after: Replay
    how: Calibration
    memory: float
    kept: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    few_patches: list[str] = field(default_factory=list)
    in_blocks: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    hooked: list[str] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)

    @classmethod
    def prepared(
        cls,
        net: nn.Module,
        result: nn.Module,
        images: Images,
        how: Calibration,
        kept: Mapping[str, Tensor],
        read: Mapping[str, Tensor],
    ) -> Self:
        """With replays that hold what is between layers, if the memory suffices; else with a warning."""
        device = next(net.parameters()).device
        batches = batches_of(images, how.batch_size, device)
        memory = how.memory or _free_memory(device) / 2
        before = Replay(set_form_(copied(net), "fast").eval(), batches)
        before.keep = _held_per_image(before, net) * count_of(batches) * (1 + how.sequential) <= memory / 2
        if not before.keep:
            warn(
                f"what {count_of(batches)} images are between layers takes more memory than there is; streamed "
                "instead: for each layer those before it are computed again"
            )
        after = Replay(result, batches, keep=before.keep) if how.sequential else before
        return cls(result, before, after, how, memory, kept, read)

    def close(self) -> None:
        self.before.close()
        self.after.close()

    def order(self, fits: Mapping[str, LayerFit]) -> list[str]:
        """Layers to be fitted and BatchNorms to be corrected, in the order in which they are computed."""
        norms = {name for name, layer in self.after.net.named_modules() if is_norm(layer)}
        norms -= self.after.repeated | self.after.loose
        wanted = fits.keys() | norms if self.how.sequential else fits.keys()
        return [name for name in self.after.calls if name in wanted]

    def fitted(self, name: str, layer: nn.Module, fit: LayerFit) -> nn.Module:
        """The layer that takes the place of one, its bias or the mean of its BatchNorm in `result` corrected."""
        if name in self.after.repeated:  # what it reads later depends on what it becomes
            self.repeated.append(name)
            return fit(weight_of(layer), None)
        if name in self.after.loose:
            self.loose.append(name)
            return fit(weight_of(layer), None)
        if is_hooked(layer):  # what it reads and gives may be other than what is seen around it
            self.hooked.append(name)
            return fit(weight_of(layer), None)
        moments, norm = self.moments(name, layer), self.norm_of(name)
        ridge = self.how.ridge * max(1.0, len(moments.mean) / moments.groups / moments.rows)
        centred = layer.bias is not None or norm is not None
        new = fit(*least_squares_target(weight_of(layer), moments, ridge, centred=centred))
        change = moments.mean_outputs(weight_of(new)) - moments.output_mean
        if layer.bias is not None:
            new.bias.copy_(layer.bias - change)
        elif norm is not None and not self.how.sequential:  # else its turn comes
            norm.running_mean += change
        return new

    def norm_of(self, name: str) -> nn.Module | None:
        """The BatchNorm that alone reads a layer."""
        readers = self.after.readers(name)
        if len(readers) != 1 or readers[0] is None:
            return None
        reader = self.result.get_submodule(readers[0])
        return reader if is_norm(reader) else None

    def shift_mean_(self, name: str, norm: nn.Module) -> None:
        """Move the mean of a BatchNorm as far as that of its inputs has moved.

        Re-estimating it would also take over how the images differ from those it was trained on.  Its variance stays:
        what least squares leave has less of it, and scaling that up would scale up the error with it.
        """
        moved = channel_means(self.after.inputs(name)) - self.remaining(name, channel_means(self.before.inputs(name)))
        known = self.before.net.get_submodule(name).running_mean
        norm.running_mean.copy_(self.remaining(name, known) + moved)

    def remaining(self, name: str, values: Tensor) -> Tensor:
        """Those of the channels of the network before that are still there."""
        return values if name not in self.kept else values[self.kept[name].to(values.device)]

    def moments(self, name: str, layer: nn.Module) -> InputMoments:
        """Of what a layer reads, and of what it should give."""
        dense = as_dense(layer)
        size, count = weight_of(dense)[0].numel(), count_of(self.after.batches)
        if count * count_positions(dense, next(self.inputs(name, dense))) < size:
            self.few_patches.append(name)
        blocks = math.ceil(_COPIES * 8 * groups_of(dense) * size**2 / (self.memory / 2))
        if blocks > 1:
            self.in_blocks.append(name)
        positions = math.ceil(max(_PATCHES_AT_LEAST, _PATCHES_PER_NUMBER * size) / count)
        targets = self.targets(name) if self.how.sequential or name in self.read else None
        moments = gather_moments(dense, self.inputs(name, dense), targets, blocks=blocks, positions=positions)
        sums = [*moments.second, *([] if moments.cross is None else [moments.cross])]
        if not all(values.isfinite().all() for values in sums):
            raise InputError(
                f"{name}: what it reads or should give on the calibration images is infinite or undefined; check the "
                "weights and BatchNorm statistics of the layers before it"
            )
        if moments.output_mean is None:
            moments.output_mean = moments.mean_outputs(weight_of(layer))
        return moments

    def inputs(self, name: str, layer: nn.Module) -> Iterator[Tensor]:
        """What a layer reads in each batch; of the network before, the channels that it still reads."""
        if self.how.sequential or name not in self.read:
            return self.after.inputs(name)
        channels = -1 if isinstance(layer, nn.Linear) else 1
        return (x.index_select(channels, self.read[name].to(x.device)) for x in self.after.inputs(name))

    def targets(self, name: str) -> Iterator[Tensor]:
        """What a layer gave before in each batch, without its bias and without filters that are gone."""
        layer, filters = self.before.net.get_submodule(name), self.kept.get(name)
        channels = -1 if isinstance(as_dense(layer), nn.Linear) else 1
        for y in self.before.outputs(name):
            if layer.bias is not None:
                y = y - layer.bias.view(-1, *[1] * (y.ndim - 1 - channels % y.ndim))
            yield y if filters is None else y.index_select(channels, filters.to(y.device))

    def warn_of_exceptions(self, count: int) -> None:
        """Say once what was done otherwise in which layers; count: of the images."""
        for text, layers in (
            ("no calibration image reaches {}; weights alone decide there", self.unreached),
            (
                f"{count} images have fewer patches than a filter has numbers in {{}}; the ridge decides there: "
                "use more images",
                self.few_patches,
            ),
            (
                "the covariance takes more memory than there is in {}; block-diagonal instead, and errors before "
                "such a layer are not made up for",
                self.in_blocks,
            ),
            ("called several times: {}; weights alone decide there", self.repeated),
            ("called with what values of the network choose: {}; weights alone decide there", self.loose),
            ("called with hooks: {}; weights alone decide there", self.hooked),
        ):
            if layers:
                some = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
                warn(text.format(f"{len(layers)} layer{'s' * (len(layers) > 1)} ({some})"))


def least_squares_target(
    weight: Tensor, moments: InputMoments, ridge: float, *, centred: bool
) -> tuple[Tensor, Metric]:
    """W*, of the weight's shape and dtype, and the metric of an error in it.

    centred: whether a bias or BatchNorm takes up any constant, so that only what varies counts.
    """
    if moments.groups > 1:
        groups = zip(weight.chunk(moments.groups), moments.by_group(), strict=True)
        found = [least_squares_target(part, own, ridge, centred=centred) for part, own in groups]
        return torch.cat([target for target, _ in found]), GroupedMetric([metric for _, metric in found])
    used = moments.centred() if centred else moments
    # Sums over a batch are in the network's precision: of inputs that hardly vary, centring leaves rounding errors.
    rounding = 2 * torch.finfo(weight.dtype).eps * Metric(moments.second).trace
    metric = Metric(used.second).ridged(ridge, rounding)
    if used.cross is None or len(metric.blocks) > 1:  # blocks alone do not tell what a change in all channels does
        return weight, metric.to(weight.dtype)
    level = (metric.blocks[0].diagonal() - used.second[0].diagonal()).mean()
    moved = metric.solve(used.cross + level * weight.double().flatten(1))
    return moved.to(weight.dtype).view(weight.shape), metric.to(weight.dtype)


def channel_means(inputs: Iterator[Tensor]) -> Tensor:
    """(C,) float64: the mean of each channel over all batches (N, C, ...)."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for x in inputs:
        total, count = total + x.transpose(0, 1).flatten(1).double().sum(1), count + x.numel() // x.shape[1]
    return total / count


def _held_per_image(replay: Replay, net: nn.Module) -> float:
    """Bytes per image; the first time that a network sees one, so that here is where it is found not to fit."""
    with taken_by(net, replay.batches[0]):
        return replay.held_per_image()


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
