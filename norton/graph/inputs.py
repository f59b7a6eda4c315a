"""What a network is called with: as somebody gives it, as the network states it, else some usual images to try."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from norton.common.errors import InputError
from norton.graph.input_sizes import candidate_sizes, is_size, stated_batch

# An input, the size of one (channels, height, width), a tuple of several inputs, or a dict of arguments by name.
Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
ALLOWED = (
    "give an input, its size (channels, height, width), a tuple of several inputs, or a dict of arguments by name, "
    "made of torch tensors"
)


@dataclass(frozen=True)
class Inputs:
    """What a network is called with: `net(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def call(self, net: nn.Module) -> Any:
        """What a network makes of them."""
        return net(*self.args, **self.kwargs)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same arguments, with tensors changed, in lists, tuples and dictionaries too."""
        changed = tree_map(lambda x: change(x) if isinstance(x, Tensor) else x, (self.args, dict(self.kwargs)))
        return Inputs(*changed)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> "Inputs":
        """Their tensors on a device; dtype: of those that are floating-point."""
        return self.map(lambda x: x.to(device, dtype if x.is_floating_point() else None))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among them, in lists, tuples and dictionaries too."""
        return [x for x in tree_leaves((self.args, dict(self.kwargs))) if isinstance(x, Tensor)]

    @property
    def count(self) -> int:
        """How many samples they are of: the first size of all tensors, or one where these differ."""
        sizes = {len(x) if x.dim() else 1 for x in self.tensors}
        return next(iter(sizes)) if len(sizes) == 1 else 1

    def first(self, count: int) -> "Inputs":
        """So many of the samples; all of them where they cannot be told apart."""
        return self.map(lambda x: x[:count]) if self.count > count else self

    def shown(self) -> str:
        """The sizes of their tensors, for people, without the batch."""
        return " and ".join("×".join(map(str, x.shape[1:])) or "()" for x in self.tensors)


def takes_indices(net: nn.Module, x: Tensor) -> bool:
    """Whether a tensor may be indices, such as words, which a network looks up in a table."""
    tables = (layer for layer in nn.Module.modules(net) if isinstance(layer, nn.Embedding | nn.EmbeddingBag))
    return x.dtype in (torch.int64, torch.int32) and x.numel() > 0 and next(tables, None) is not None


def inputs_of(example: Example) -> Inputs:
    """An example that is no size as what a network is called with.  Raises InputError for one that is none."""
    inputs = Inputs((example,)) if isinstance(example, Tensor) else None
    if isinstance(example, Mapping) and all(isinstance(name, str) for name in example):
        inputs = Inputs((), dict(example))
    elif isinstance(example, tuple | list):
        inputs = Inputs(tuple(example))
    if inputs is None or not inputs.tensors:
        what = repr(example) if isinstance(example, str | int | float | tuple | list) else type(example).__name__
        raise InputError(f"example is {what[:80]}; {ALLOWED}")
    if not any(x.numel() for x in inputs.tensors):
        shapes = " and ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise InputError(f"example is of shape {shapes}, which has no numbers in it; give at least one image")
    return inputs


def stated_example(net: nn.Module) -> Example | None:
    """A network's `example_input_array` as plain data, for a file; None where it has none, or one of other objects."""
    example = getattr(net, "example_input_array", None)
    if not all(isinstance(x, Tensor | bool | int | float | str | None) for x in tree_leaves(example)):
        return None
    return tree_map(lambda x: x.detach().cpu() if isinstance(x, Tensor) else x, example)


def stated_inputs(net: nn.Module) -> Inputs | None:
    """A network's `example_input_array`, as Lightning calls what a network states to take; None where it has none."""
    example = getattr(net, "example_input_array", None)
    return None if example is None else inputs_of(example)


def candidate_inputs(net: nn.Module, example: Example | None = None) -> list[Inputs]:
    """What to try to call a network with, sizes as images on the meta device.

    Numbers are in the precision of the network, and a batch of one is doubled at first: BatchNorm in training asks for
    two.  Raises InputError for an example that is none.
    """
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    size = example if is_size(example) else None
    given = stated_inputs(net) if example is None else None if size is not None else inputs_of(example)
    if given is None:
        batch = stated_batch(net) or 2
        batches = [2, 1] if batch == 1 else [batch]
        sizes = [(batch, *size) for size in candidate_sizes(net, size) for batch in batches]
        return [Inputs((torch.empty(size, device="meta", dtype=dtype),)) for size in sizes]
    given = given.map(lambda x: x.detach().to(dtype) if x.is_floating_point() else x.detach())
    alone = all(x.shape[:1] == (1,) for x in given.tensors if x.dim())
    return [given.map(lambda x: x.repeat(2, *[1] * (x.dim() - 1)) if x.dim() else x), given] if alone else [given]


def remember_example_(net: nn.Module, example: Example | None) -> None:
    """Let a network state what it takes, as an example tells.

    Of images alone their size and number, in `input_size` and `input_batch`; else all inputs, in `example_input_array`,
    of whose samples, where there are more than two, the first one stands in all places, so that they take no room.
    """
    if isinstance(example, Tensor) and example.is_floating_point() and example.dim() != 1:
        net.input_batch = len(example)  # type: ignore[assignment]
        example = tuple(example.shape[1:])
    if is_size(example):
        net.input_size = tuple(example)  # type: ignore[assignment]
    elif example is not None:
        given = inputs_of(example).map(Tensor.detach)
        known = given.map(_repeated if given.count > 2 else Tensor.clone)
        net.example_input_array = (  # type: ignore[assignment]
            known.args[0] if isinstance(example, Tensor) else known.args or known.kwargs
        )


def _repeated(samples: Tensor) -> Tensor:
    return samples[:1].clone().expand(samples.shape)
