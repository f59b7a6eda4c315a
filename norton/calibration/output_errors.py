"""How far the outputs of decomposed layers are from what the network's layers gave before."""

from collections import defaultdict
from functools import partial

import torch
from torch import Tensor, nn

from norton.calibration.batches import batches_of
from norton.calibration.input_moments import output_rows
from norton.calibration.loaders import ImageSource, read_images
from norton.graph.copies import copied
from norton.graph.layers import as_dense, is_decomposed


@torch.no_grad()
def output_errors(net: nn.Module, small: nn.Module, images: ImageSource, batch_size: int = 32) -> dict[str, float]:
    """Decomposed layer → E‖ŷ - y‖² / E‖y‖² of what varies in its outputs, y in the network before and ŷ after.

    What `decompose` makes small with the objective `outputs`, with the errors of all layers before it; constants are
    left out, since BatchNorm takes them up.  images: as `norton.decompose` takes them.  Layers that none
    reaches are left out.
    """
    names = [name for name, layer in small.named_modules() if is_decomposed(layer)]
    before, after = (copied(one).eval() for one in (net, small))
    wanted, found = _record_outputs(before, names), _record_outputs(after, names)
    errors: dict[str, list[Tensor]] = defaultdict(list)
    outputs: dict[str, list[Tensor]] = defaultdict(list)
    images, _ = read_images(net, images)
    for batch in batches_of(images, batch_size):
        for one, recorded in ((before, wanted), (after, found)):
            recorded.clear()
            batch.call(one)
        for name in wanted.keys() & found.keys():
            dense = as_dense(after.get_submodule(name))
            y, approximation = (output_rows(dense, recorded[name]) for recorded in (wanted, found))
            errors[name].append(_channel_sums(approximation - y))
            outputs[name].append(_channel_sums(y))
    return {name: _ratio(_variance(errors[name]), _variance(outputs[name])) for name in names if name in errors}


def _record_outputs(net: nn.Module, names: list[str]) -> dict[str, Tensor]:
    """Layer → its output in the next forward pass, by hooks; at the first of several calls."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, args: tuple, output: Tensor) -> None:
        outputs.setdefault(name, output.clone())

    for name in names:
        net.get_submodule(name).register_forward_hook(partial(keep, name))
    return outputs


def _channel_sums(values: Tensor) -> Tensor:
    """(3, O) float64: per channel the sum of squares and of values (rows, O), and how many there are."""
    values = values.double()
    rows = torch.full_like(values[0], len(values))
    return torch.stack([values.square().sum(0), values.sum(0), rows])


def _variance(sums: list[Tensor]) -> float:
    """Summed over channels, of what `_channel_sums` found in each batch."""
    squares, values, rows = sum(sums)
    return (squares / rows - (values / rows).square()).clamp_min(0).sum().item()


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
