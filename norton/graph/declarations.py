"""What users declare of the channels of their own layers: the table, and what it says of a layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

Places = Mapping[str, int | None]  # name of a tensor → dimension with an entry per channel; of a whole number → None


@dataclass(frozen=True)
class Declaration:
    """What the layers of a type do with channels, see `norton.graph.declare`."""

    reads: Places
    writes: Places
    passes: Places
    dim: int

    @property
    def main(self) -> str | None:
        """The tensor that has the filters, with what they read if one has both; None for a layer that writes none."""
        written = [name for name, dim in self.writes.items() if dim is not None]
        return next((name for name in written if self.reads.get(name) is not None), next(iter(written), None))


DECLARED: dict[type[nn.Module], Declaration] = {}  # also for the types derived from it


def declaration_of(layer: nn.Module) -> Declaration | None:
    """What was declared of a layer's type, or of the nearest type that it is derived from."""
    return next((DECLARED[kind] for kind in type(layer).__mro__ if kind in DECLARED), None)


def filters_of_declared(layer: nn.Module, declaration: Declaration) -> Tensor:
    """(filters, ...): the tensor of a declared layer that has its filters, what they read behind them."""
    name = declaration.main or ""
    tensor = value_at(layer, name)
    written, read = (places.get(name) for places in (declaration.writes, declaration.reads))
    assert isinstance(tensor, Tensor) and written is not None
    if read is None:
        return tensor.movedim(written, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None]
    return tensor.movedim((written, read), (0, 1))


def holder(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """(module, attribute) of a name with dots, from a layer on."""
    path, _, key = name.rpartition(".")
    return layer.get_submodule(path), key


def value_at(layer: nn.Module, name: str) -> object:
    """The tensor or number of that name, from a layer on."""
    owner, key = holder(layer, name)
    return getattr(owner, key)


def inside_declared(net: nn.Module) -> Iterator[tuple[str, str]]:
    """(name of a module, name of the declared layer that it is or belongs to), for all of those."""
    declared = [name for name, layer in net.named_modules(remove_duplicate=False) if declaration_of(layer) is not None]
    for name, _ in net.named_modules(remove_duplicate=False):
        around = next((one for one in declared if name == one or name.startswith(f"{one}.") or not one), None)
        if around is not None:
            yield name, around
