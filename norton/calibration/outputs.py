"""The objective `outputs`: compress such that layers give what the network's layers gave before, on calibration images.

No labels and no training step.  Layers are compressed in the order in which they are computed.  With S the covariance
of the patches x' that a layer reads in the network *as compressed so far*, and y = W x + b what it gave before, least
squares first move its weight to

    W* = argmin E‖y - W* x' - b*‖² + λ‖W* - W‖²,

which takes up the error of the layers before; then W* is decomposed, in weights first, then in the metric of S.  Where
`sequential` is false, all layers are fitted to what they read in the network before, and W* is W.

Pruning takes the same way, see `norton.calibration.compensation`: layers then have less inputs and filters than before.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import psutil
import torch
from rich.progress import track
from torch import Tensor, nn

from norton.calibration.input_moments import Moments, gather, output_rows, positions_of
from norton.calibration.metric import Metric
from norton.calibration.replay import Walk
from norton.common.errors import InputError, first_line, warn
from norton.graph.input_sizes import stated_size
from norton.graph.layers import as_dense, in_form, is_decomposed, is_norm, set_form_, weight_of

# So many of a layer's patches are looked at per number of a filter, drawn evenly from all images, but not less than:
_PATCHES_PER_NUMBER, _PATCHES_AT_LEAST = 64, 50_000
_COPIES = 6  # of the second moments in float64 that are held at once

# (target (O, C, kh, kw) or (O, C), metric) → the layer; metric None: nothing is known but the weight
Fit = Callable[[Tensor, Metric | None], nn.Module]


@dataclass(frozen=True)
class Calibration:
    """How calibration images are used.

    sequential: each layer reads what the layers compressed before it give, and aims at what the network gave before;
    else all of them read and aim at what there was before.  ridge: λ, relative to the mean variance of what a layer
    reads; more where there are fewer patches than numbers in a filter.  sweeps: over body and tail of CP after its
    heads; over all parts of other decompositions.  batch_size: images computed at a time.  memory: bytes that may be
    taken beside the network; None: half of what is free.
    """

    sequential: bool = True
    ridge: float = 0.01
    sweeps: int = 2
    batch_size: int = 128
    memory: float | None = None

    def __post_init__(self):
        if not isinstance(self.sequential, bool):
            raise InputError(f"sequential is {self.sequential!r}; it is true or false")
        for name in ("ridge", "memory"):
            value = getattr(self, name)
            if name == "memory" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise InputError(f"{name} is {value!r}; it must be a number above 0")
        for name, least in (("sweeps", 0), ("batch_size", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value!r}; it must be a whole number of at least {least}")


@torch.no_grad()
def fit_to_outputs(
    before: nn.Module,
    small: nn.Module,
    fits: Mapping[str, Fit],
    images: Tensor,
    how: Calibration,
    *,
    kept: Mapping[str, Tensor] | None = None,
    read: Mapping[str, Tensor] | None = None,
    progress: bool = False,
    doing: str = "fit to outputs",
) -> nn.Module:
    """A copy of `small` whose layers are fitted, one after the other, to what those of `before` give.

    fits: layer → what makes the layer that takes its place.  images: (N, C, H, W), transformed as for evaluation.
    kept: layer → the filters of `before`, for a BatchNorm the channels, that `small` still has, where it has not all.
    read: layer → the channels of what it reads in `before` that it reads in `small`, where these are not all.
    doing: what the bar shows.

    Biases are corrected so that each output keeps its mean; where a layer has none, a BatchNorm that alone reads it is.
    In the sequential form the means of all BatchNorms follow those of their inputs.

    Warns of layers that the images do not reach or that are called several times, which are fitted to their weights, of
    too few images, and where memory asks for a cheaper form.  Raises InputError for images that do not fit, values that
    are not finite, and a network that cannot be traced.
    """
    check_images(before, images)
    device = next(before.parameters()).device
    batches = [batch.to(device) for batch in images.split(how.batch_size)]
    memory = how.memory or _free_memory(device) / 2
    result, new = copy.deepcopy(small).eval(), {}
    with ExitStack() as forms:
        forms.enter_context(in_form(result, "fast"))
        dense = Walk(set_form_(copy.deepcopy(before), "fast").eval(), batches)
        dense.keep = _held_per_image(dense, before) * len(images) * (1 + how.sequential) <= memory / 2
        if not dense.keep:
            warn(
                f"what {len(images)} images are between layers takes more memory than there is; streamed instead: for "
                "each layer those before it are computed again"
            )
        walk = Walk(result, batches, keep=dense.keep) if how.sequential else dense
        passage = _Passage(dense, walk, how, memory, kept or {}, read or {})
        for name in track(passage.stops(fits), doing, disable=not progress, transient=True):
            layer = result.get_submodule(name)
            if name in fits:
                new[name] = passage.fitted(name, layer, fits[name], result)
                new[name].train(small.get_submodule(name).training)
                forms.enter_context(in_form(new[name], "fast"))
                _put(result, layer, new[name])
            else:
                passage.carry_(name, layer)
    unreached = []
    for name in sorted(fits.keys() - walk.calls.keys()):
        layer = result.get_submodule(name)
        if layer not in new.values():  # else it is another name of one that was reached
            unreached.append(name)
            _put(result, layer, fits[name](weight_of(layer), None))
    passage.remark_on("no calibration image reaches {}; weights alone decide there", unreached)
    passage.finish(len(images))
    modes = {name: layer.training for name, layer in small.named_modules()}
    for name, layer in result.named_modules():
        layer.training = modes.get(name, layer.training)
    return result


@dataclass
class _Passage:
    """Two networks on their way over the calibration images: as it was, and as it becomes."""

    dense: Walk
    walk: Walk
    how: Calibration
    memory: float
    kept: Mapping[str, Tensor]
    read: Mapping[str, Tensor]
    few: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)

    def stops(self, fits: Mapping[str, Fit]) -> list[str]:
        """Layers to be fitted and BatchNorms to be corrected, in the order in which they are computed."""
        norms = {name for name, layer in self.walk.net.named_modules() if is_norm(layer)} - self.walk.repeated
        wanted = fits.keys() | norms if self.how.sequential else fits.keys()
        return [name for name in self.walk.calls if name in wanted]

    def fitted(self, name: str, layer: nn.Module, fit: Fit, result: nn.Module) -> nn.Module:
        """The layer that takes the place of one, its bias or the mean of its BatchNorm in `result` corrected."""
        if name in self.walk.repeated:  # what it reads later depends on what it becomes
            self.repeated.append(name)
            return fit(weight_of(layer), None)
        moments = self.moments(name, layer)
        readers = self.walk.readers(name)
        norm = result.get_submodule(readers[0]) if len(readers) == 1 and readers[0] is not None else None
        norm = norm if norm is not None and is_norm(norm) else None
        ridge = self.how.ridge * max(1.0, len(moments.mean) / moments.rows)
        new = fit(*aim(weight_of(layer), moments, ridge, free=layer.bias is not None or norm is not None))
        change = weight_of(new).double().flatten(1) @ moments.mean - moments.output_mean
        if layer.bias is not None:
            new.bias.copy_(layer.bias - change)
        elif norm is not None and not self.how.sequential:  # else its turn comes
            norm.running_mean += change
        return new

    def carry_(self, name: str, norm: nn.Module) -> None:
        """Move the mean of a BatchNorm as far as that of its inputs has moved.

        Re-estimating it would also take over how the images differ from those it was trained on.  Its variance stays:
        what least squares leave has less of it, and scaling that up would scale up the error with it.
        """
        moved = channel_means(self.walk.inputs(name)) - self.channels(name, channel_means(self.dense.inputs(name)))
        known = self.dense.net.get_submodule(name).running_mean
        norm.running_mean.copy_(self.channels(name, known) + moved)

    def channels(self, name: str, values: Tensor) -> Tensor:
        """Those of the channels of the network before that are still there."""
        return values if name not in self.kept else values[self.kept[name].to(values.device)]

    def moments(self, name: str, layer: nn.Module) -> Moments:
        """Of what a layer reads, and of what it should give."""
        dense = as_dense(layer)
        size, count = dense.weight[0].numel(), sum(map(len, self.walk.batches))
        if count * positions_of(dense, next(self.inputs(name, dense))) < size:
            self.few.append(name)
        blocks = math.ceil(_COPIES * 8 * size**2 / (self.memory / 2))
        if blocks > 1:
            self.blocked.append(name)
        positions = math.ceil(max(_PATCHES_AT_LEAST, _PATCHES_PER_NUMBER * size) / count)
        targets = None
        if self.how.sequential or name in self.read:
            before, filters = self.dense.net.get_submodule(name), self.kept.get(name)
            targets = (_without_bias(before, y, filters) for y in self.dense.outputs(name))
        moments = gather(dense, self.inputs(name, dense), targets, blocks=blocks, positions=positions)
        if not all(sums.isfinite().all() for sums in (*moments.second, *([] if targets is None else [moments.cross]))):
            raise InputError(
                f"{name}: what it reads or should give on the calibration images is infinite or undefined; check the "
                "weights and BatchNorm statistics of the layers before it"
            )
        if moments.output_mean is None:
            moments.output_mean = weight_of(layer).double().flatten(1) @ moments.mean
        return moments

    def inputs(self, name: str, layer: nn.Module) -> Iterator[Tensor]:
        """What a layer reads in each batch; of the network before, the channels that it still reads."""
        if self.how.sequential or name not in self.read:
            return self.walk.inputs(name)
        channels = -1 if isinstance(layer, nn.Linear) else 1
        return (x.index_select(channels, self.read[name].to(x.device)) for x in self.walk.inputs(name))

    def finish(self, count: int) -> None:
        """Say once what was done otherwise in which layers."""
        self.remark_on(
            f"{count} images have fewer patches than a filter has numbers in {{}}; the ridge decides there: "
            "use more images",
            self.few,
        )
        self.remark_on(
            "the covariance takes more memory than there is in {}; block-diagonal instead, and errors before "
            "such a layer are not made up for",
            self.blocked,
        )
        self.remark_on("called several times: {}; weights alone decide there", self.repeated)

    @staticmethod
    def remark_on(text: str, layers: list[str]) -> None:
        if layers:
            some = ", ".join(layers[:3]) + (", ..." if len(layers) > 3 else "")
            count = f"{len(layers)} layer{'s' * (len(layers) > 1)}"
            warn(text.format(f"{count} ({some})"))


def aim(weight: Tensor, moments: Moments, ridge: float, free: bool) -> tuple[Tensor, Metric]:
    """W*, of the weight's shape and dtype, and the metric of an error in it.

    free: whether a bias or BatchNorm takes up any constant, so that only what varies counts.
    """
    used = moments.centred() if free else moments
    # Sums over a batch are in the network's precision: of inputs that hardly vary, centring leaves rounding errors.
    rounding = 2 * torch.finfo(weight.dtype).eps * Metric(moments.second).trace
    metric = Metric(used.second).ridged(ridge, rounding)
    if used.cross is None or len(metric.blocks) > 1:  # blocks alone do not tell what a change in all channels does
        return weight, metric.to(weight.dtype)
    level = (metric.blocks[0].diagonal() - used.second[0].diagonal()).mean()
    moved = metric.solve(used.cross + level * weight.double().flatten(1))
    return moved.to(weight.dtype).view(weight.shape), metric.to(weight.dtype)


@torch.no_grad()
def output_errors(net: nn.Module, small: nn.Module, images: Tensor, batch_size: int = 32) -> dict[str, float]:
    """Decomposed layer → E‖ŷ - y‖² / E‖y‖² of what varies in its outputs, y in the network before and ŷ after.

    What `decompose` makes small with the objective `outputs`, with the errors of all layers before it; constants are
    left out, since BatchNorm takes them up.  images: (N, C, H, W).  Layers that no image reaches are left out.
    """
    names = [name for name, layer in small.named_modules() if is_decomposed(layer)]
    nets = [copy.deepcopy(one).eval() for one in (net, small)]
    seen: list[dict[str, Tensor]] = [{}, {}]
    for one, outputs in zip(nets, seen, strict=True):
        for name in names:
            one.get_submodule(name).register_forward_hook(partial(_keep, outputs, name))
    sums: dict[str, list[Tensor]] = {}
    for batch in images.split(batch_size):
        for one, outputs in zip(nets, seen, strict=True):
            outputs.clear()
            one(batch)
        for name in seen[0].keys() & seen[1].keys():
            before, after = (output_rows(as_dense(nets[1].get_submodule(name)), found[name]) for found in seen)
            for values in (after - before, before):
                values = values.double()
                rows = torch.full_like(values[0], len(values))
                sums.setdefault(name, []).append(torch.stack([values.square().sum(0), values.sum(0), rows]))
    return {name: _share_of_variance(sums[name]) for name in names if name in sums}


def _keep(outputs: dict[str, Tensor], name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
    outputs.setdefault(name, output.clone())


def _share_of_variance(sums: list[Tensor]) -> float:
    """Of the first, third, ... of sums (squares, values, rows) per channel, of that of the others."""
    variances = []
    for squares, values, rows in (sum(sums[::2]), sum(sums[1::2])):
        variances.append((squares / rows - (values / rows).square()).clamp_min(0).sum().item())
    return variances[0] / variances[1] if variances[1] > 0 else 0.0


def channel_means(inputs: Iterator[Tensor]) -> Tensor:
    """(C,) float64: the mean of each channel over all batches (N, C, ...)."""
    total, count = 0, 0
    for x in inputs:
        total, count = total + x.transpose(0, 1).flatten(1).double().sum(1), count + x.numel() // x.shape[1]
    return total / count


def check_images(net: nn.Module, images: Tensor) -> None:
    """Raise InputError for calibration images that are none, or not of the network's size."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        what = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"calibration images of shape {what}; expected (N, C, H, W), at least one, a few hundred better"
        )
    size = stated_size(net)
    if size is not None and tuple(images.shape[1:]) != size:
        has, takes = ("×".join(map(str, shape)) for shape in (images.shape[1:], size))
        raise InputError(f"calibration images of {has}; the network takes {takes}: resize them as for evaluation")
    dtype = next(net.parameters()).dtype
    if images.dtype != dtype:
        raise InputError(f"calibration images are {images.dtype}, the network {dtype}; give both the same with .to()")
    if torch.finfo(dtype).bits < 32:
        raise InputError(
            f"the network is {dtype}, too coarse to fit to outputs; take net.float(), and go back after it"
        )
    if not images.isfinite().all():
        raise InputError("calibration images have infinite or undefined values")


def _held_per_image(walk: Walk, net: nn.Module) -> float:
    """Bytes per image; the first time that a network sees one, so that here is where it is found not to fit."""
    try:
        return walk.held_per_image()
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        size = "×".join(map(str, walk.batches[0].shape[1:]))
        said = f"{type(net).__name__} does not take calibration images of {size}: {first_line(error)}"
        raise InputError(said) from None


def _without_bias(layer: nn.Module, y: Tensor, filters: Tensor | None) -> Tensor:
    channels = -1 if isinstance(as_dense(layer), nn.Linear) else 1
    if layer.bias is not None:
        y = y - (layer.bias if channels == -1 else layer.bias[:, None, None])
    return y if filters is None else y.index_select(channels, filters.to(y.device))


def _put(net: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a layer under all its names."""
    names = [name for name, layer in net.named_modules(remove_duplicate=False) if layer is old]
    for name in names:
        net.set_submodule(name, new)


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
