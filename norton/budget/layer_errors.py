"""How much of a layer's output is lost, and probing the layers of a network one by one.

The error of a layer is E‖(W - Ŵ) x‖² / E‖W x‖² over what it reads in the network as it is, of what varies alone where a
bias or BatchNorm takes up any constant.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from norton.calibration import Calibration, Metric, fit_to_outputs
from norton.calibration.batches import Images
from norton.common.errors import warn
from norton.graph.layers import weight_of

# Sees a layer's weight and the metric of what it reads (None: no images), and keeps what it measures.
Probe = Callable[[Tensor, Metric | None], None]
_NOTHING = 1e-5  # of the squares with a ridge: what may be left of nothing when the ridge is taken off


def relative_output_error(lost: Tensor, rows: Tensor, metric: Metric | None) -> float:
    """The expected squared outputs of `lost` (n, D) relative to those of `rows` (n, D), flattened filters.

    Without a metric, of their weights.  0 where there are no outputs to lose.
    """
    if metric is None:
        whole, part = rows.square().sum().item(), lost.square().sum().item()
        return part / whole if whole > 0 else 0.0
    whole = metric.squares_without_ridge(rows).sum().item()
    if whole <= _NOTHING * metric.squares(rows).sum().item():
        return 0.0
    return metric.squares_without_ridge(lost).sum().item() / whole


def sampled_filters(count: int, most: int | None, seed: int) -> Tensor:
    """Which of so many filters are looked at: `most` of them, drawn by the seed; None: all."""
    if most is None or count <= most:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values


def probe_layers(
    net: nn.Module, probes: Mapping[str, Sequence[Probe]], images: Images | None, how: Calibration, progress: bool
) -> None:
    """Show `probes` the weights of their layers with the metrics of what these read, one layer at a time."""

    def unchanged(name: str) -> Callable[[Tensor, Metric | None], nn.Module]:
        def fit(weight: Tensor, metric: Metric | None) -> nn.Module:
            for probe in probes[name]:
                probe(weight, metric)
            return copy.deepcopy(net.get_submodule(name)).to(weight.dtype)

        return fit

    fits = {name: unchanged(name) for name in probes}
    if images is not None:
        how = replace(how, sequential=False)
        fit_to_outputs(net, net, fits, images, how, progress=progress, doing="measure layers")
        return
    warn("a budget without calibration images: errors of weights stand for those of outputs")
    for name, fit in fits.items():
        fit(weight_of(net.get_submodule(name)), None)
