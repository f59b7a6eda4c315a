"""How far what a network gives is from what the dense one gives, whatever that is: classes, or other numbers."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from norton.common.errors import InputError
from norton.graph.logits import logits_in
from norton.training.distillation import soft_target_loss

Kind = Literal["auto", "classes", "values"]
PART = "of detectors, which give as many boxes as they find, refine the part that gives features, such as the backbone"


class Answers:
    """Compares what a network gives with what the dense one gives.

    outputs: what the dense network gives for each of some batches.  kind: `classes`, logits (N, C) of an image or
    (N, C, H, W) of each pixel, compared by soft targets; `values`, any other numbers, compared by their squared error
    relative to how much they vary over the batches; `auto`: classes where logits of two or more classes are given, by
    themselves or as `out` of a dict.  temperature: of soft targets.

    Raises InputError for a kind that is none, and for outputs that cannot be compared: without numbers, or whose
    shapes differ from batch to batch.
    """

    def __init__(self, outputs: Sequence[Any], kind: Kind = "auto", temperature: float = 4.0):
        if kind not in get_args(Kind):
            raise InputError(f"outputs is {kind!r}; choose one of {', '.join(get_args(Kind))}")
        self.temperature = temperature
        logits = [logits_in(output) for output in outputs]
        able = all(isinstance(x, Tensor) and x.dim() in (2, 4) and x.shape[1] > 1 for x in logits)
        if kind == "classes" and not able:
            raise InputError("outputs is 'classes', and the network gives no logits (N, C) or (N, C, H, W)")
        self.classes = kind == "classes" or (kind == "auto" and able)
        batches = logits if self.classes else outputs
        leaves = [_numbers(output) for output in batches]
        if not all(leaves) or len({tuple(x.shape[1:] for x in batch) for batch in leaves}) > 1:
            raise InputError(
                "the network gives nothing that can be compared: no numbers, or of sizes that differ from batch to "
                f"batch; {PART}"
            )
        self.spreads = [_spread(list(batch)) for batch in zip(*leaves, strict=True)]

    def distance(self, output: Any, wanted: Any) -> Tensor:
        """A mean over the batch, with gradients: 0 where both are alike.  Raises InputError where shapes differ."""
        if self.classes:
            output, wanted = logits_in(output), logits_in(wanted)
        ours, theirs = _numbers(output), _numbers(wanted)
        if [x.shape for x in ours] != [x.shape for x in theirs]:
            raise InputError(
                f"the network gives outputs of {_sizes(ours)}, the dense one of {_sizes(theirs)}; give networks of the "
                f"same classes, or {PART}"
            )
        if self.classes:
            return soft_target_loss(_rows(ours[0]), _rows(theirs[0]), self.temperature)
        errors = [
            (y.to(spread) - t.to(spread)).square().mean() / spread
            for y, t, spread in zip(ours, theirs, self.spreads, strict=True)
        ]
        return torch.stack(errors).mean()


def _numbers(output: Any) -> list[Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point() and x.dim()]


def _sizes(found: list[Tensor]) -> str:
    """Without the batch."""
    return ", ".join([*(str(tuple(x.shape[1:])) for x in found[:3]), *(["..."] if len(found) > 3 else [])])


def _rows(logits: Tensor) -> Tensor:
    """(N, C, ...) as a row for each image or pixel."""
    return logits.movedim(1, -1).flatten(0, -2)


def _spread(batches: list[Tensor]) -> Tensor:
    """The mean square of what varies from image to image, in float32 at least."""
    values = torch.cat(batches)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    varying = (values - values.mean(0)).square().mean()
    return torch.where(varying > 0, varying, values.square().mean()).clamp_min(torch.finfo(values.dtype).tiny)
