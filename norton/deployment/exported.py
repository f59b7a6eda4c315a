"""What all exports share: the record of a file that was written, and its outputs compared with the network's."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from norton.common.errors import InputError, first_line
from norton.graph.inputs import Inputs

TOLERANCE = 1e-4  # relative difference of outputs, in float32
_BATCHES = (1, 3)  # sizes at which outputs are compared; the network is traced with another


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    difference: of its outputs to those of what it came from, ‖y - y'‖ / ‖y‖.  in_float: for INT8, layer → operator that
    the quantiser lacks, which computes in float32 as before.
    """

    path: Path
    difference: float
    in_float: Mapping[str, str] = field(default_factory=dict)


def tensors_in(outputs: Any) -> list[Tensor]:
    """The tensors of what a network returns, in order."""
    return [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]


def names_of(values: Any, otherwise: str) -> list[str]:
    """A name for each tensor that a network takes or returns, of where it is in its arguments or what it returns."""
    leaves, _ = tree_flatten_with_path(values)
    paths = [path for path, value in leaves if isinstance(value, Tensor)]
    names = ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path in paths]
    if any(not name.isidentifier() for name in names):
        names = [f"{otherwise}_{name}".rstrip("_") for name in names]
    return names if len(set(names)) == len(names) else [f"{otherwise}_{place}" for place in range(len(names))]


def batch_of(inputs: Inputs, size: int, generator: torch.Generator | None = None) -> Inputs:
    """A batch of another size, made of the first sample of each tensor that has one; generator: of random numbers."""
    count = max((len(x) for x in inputs.tensors if x.ndim > 1), default=0)

    def repeated(x: Tensor) -> Tensor:
        if not x.ndim or len(x) != count:
            return x
        if generator is not None and x.is_floating_point():
            return torch.randn(size, *x.shape[1:], generator=generator)
        return x[:1].repeat(size, *[1] * (x.ndim - 1))

    return inputs.map(repeated)


def compared(what: str, run: nn.Module, net: nn.Module, inputs: Inputs) -> float:
    """The largest relative difference over batch sizes.  Raises InputError above `TOLERANCE`."""
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in _BATCHES:
        given = batch_of(inputs, size, generator)
        worst = max(worst, relative_difference(given.call(run), given.call(net)))
    if worst > TOLERANCE:
        raise InputError(
            f"the outputs of {what} differ from the network's by {worst:.1e} of their size, more than {TOLERANCE:.0e}; "
            "nothing was written"
        )
    return worst


def relative_difference(found: Any, expected: Any) -> float:
    """‖y - y'‖ / ‖y‖, infinite where shapes differ or a value is not finite; the largest of several outputs."""
    pairs = zip(tensors_in(found), tensors_in(expected), strict=True)
    return max((_relative_difference(own, other) for own, other in pairs), default=0.0)


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    if not expected.is_floating_point():
        return 0.0 if torch.equal(found, expected) else float("inf")
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    size = torch.linalg.vector_norm(expected)
    return (torch.linalg.vector_norm(found - expected) / size.where(size > 0, 1)).item()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters and quantiser, which are for their developers; errors come through."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def told_first(error: Exception | str) -> str:
    return first_line(error).partition(" For more information")[0].rstrip(".;:!")


def described(images: object) -> str:
    if isinstance(images, tuple | Mapping) and images:
        return " and ".join(map(described, images.values() if isinstance(images, Mapping) else images))
    if not isinstance(images, Tensor):
        return f"a {type(images).__name__}"
    return f"{str(images.dtype).removeprefix('torch.')} of {tuple(images.shape)}"
