"""Who writes, passes and reads each channel of a network.

A model declares its wiring by walking its own forward pass with symbolic channels: layers read channels and write new
ones, normalisations pass them, sums tie them, concatenations and flattening lay them side by side.  Channels are arrays
of ids, one for each position, so that parts of them, and orders of them, are parts and orders of arrays.  Everything
that pruning must know (what is cut together, at which positions, in which order) is derived from that, see
`norton.graph.axes`.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from torch import nn

from norton.common.tables import ShownAsTable
from norton.graph.axes import Axes, Channels, connected, find_axes
from norton.graph.layers import WRITING_LAYERS, groups_of, is_decomposed, width
from norton.graph.parameters import ENTRY_LAYERS, OWN_NUMBERS

OUTPUT = "it is the network's output"  # the reason why the last layer stays whole
INPUT = "it depends on the network's input, or on channels that cannot be followed"


class Wiring(ShownAsTable):
    """The channels of a network, and the axes that follow from what is tied, read and frozen.

    A unit is what can only go together: one filter of each of the layers that are summed, a group of a grouped
    convolution, a head of an attention.  An axis is all units that the same layers write and the same layers read.

    passes, reads: (layer, channels) for layers that keep channels apart (BatchNorm) and for those that mix them.  A
    grouped convolution whose groups go as wholes ties what it reads to what it writes, and is in neither.
    parameters: (name, channels, dimension) for parameters outside of layers, such as a scale per channel.
    doubtful: layers and lines of code whose channels may go in either of two ways; other_way: those of them where they
    go in the one that is not the default.
    indices: name of a buffer of whole numbers → (channels that it indexes, channels that this gives).
    proof: of a wiring that was traced, what runs a network that was cut, see `check_cut`; it holds the traced copy.
    sizes: name of a number (`blocks.0.num_heads`, `blocks.0.splits[1]`) → the channels that it counts, or a multiple.
    stated: the same of numbers that the forward pass does not need, see `norton.graph.stated_numbers`.
    """

    def __init__(self, net: nn.Module, other_way: Set[Any] = frozenset()):
        self.doubtful: dict[Any, None] = {}
        self.other_way = other_way
        self._by_groups: set[str] = set()
        self._layers = dict(net.named_modules())
        self._count = 0
        self._ties: list[tuple[Channels, Channels]] = []
        self._frozen: list[tuple[Channels, str]] = []
        self._shifts: list[tuple[Channels, Channels]] = []
        self._written: dict[str, Channels] = {}
        self._found: Axes | None = None
        self._first: tuple[tuple[int, int], Channels] = (0, 0), np.arange(0)  # of each unit, at so many ids and ties
        self.passes: list[tuple[str, Channels]] = []
        self.reads: list[tuple[str, Channels]] = []
        self.parameters: list[tuple[str, Channels, int]] = []
        self.sizes: dict[str, Channels] = {}
        self.stated: dict[str, Channels] = {}
        self.indices: dict[str, tuple[Channels, Channels]] = {}
        self.proof: Callable[[Mapping[int, Sequence[int]]], None] | None = None

    # What a model declares

    def input(self, channels: int) -> Channels:
        """The network's input, which nobody prunes."""
        x = self.unwritten(channels)
        self.freeze(x, INPUT)
        return x

    def unwritten(self, channels: int) -> Channels:
        """Channels that no layer writes: the entries of a parameter, until they meet those of a layer."""
        self._count += channels
        self._found = None
        return np.arange(self._count - channels, self._count)

    def layer(self, name: str, x: Channels) -> Channels:
        """A convolution or linear layer: reads x and writes channels of its own.

        A layer that is called again reads and writes what it did before.
        """
        layer, written = self._layers[name], self.written_by(name)
        if name in self._by_groups:
            self._tie_groups(x, written, layer.groups)
            return written
        if (before := dict(self.reads).get(name)) is not None:
            self.add(before, x)
            return written
        if self._goes_by_groups(name, len(x)):
            self._tie_groups(x, written, layer.groups)
        else:
            for channels in (x, written):
                self.tie_alike(channels, groups_of(layer))
            self.reads.append((name, x))
            self._found = None
        return written

    def written_by(self, name: str) -> Channels:
        """The filters of a layer, which need not have been called yet."""
        if name not in self._written:
            layer = self._layers[name]
            self._written[name] = self.unwritten(width(layer))
        return self._written[name]

    def read(self, name: str, x: Channels) -> None:
        """A layer that reads x, and of which all that it writes stays."""
        if (before := dict(self.reads).get(name)) is not None:
            self.add(before, x)
        else:
            self.reads.append((name, x))
            self._found = None

    def norm(self, name: str, x: Channels) -> Channels:
        """A layer with one entry per channel, such as BatchNorm."""
        if (before := dict(self.passes).get(name)) is not None:
            return self.add(before, x)
        self.passes.append((name, x))
        self._found = None
        return x

    def group_norm(self, name: str, x: Channels) -> Channels:
        """A GroupNorm: its groups can be removed as wholes; if it has but one, its channels alone."""
        groups = self._layers[name].num_groups
        if groups > 1:
            self.tie_blocks(x, groups)
        return self.norm(name, x)

    def parameter(self, name: str, x: Channels, dim: int) -> Channels:
        """A parameter or buffer outside of layers that has one entry per channel along `dim`."""
        for known, before, along in self.parameters:
            if known == name and along != dim:
                raise ValueError(f"{name} has channels along dimension {along} elsewhere, and here along {dim}")
            if known == name:
                return self.add(before, x)
        self.parameters.append((name, x, dim))
        self._found = None
        return x

    def size(self, name: str, x: Channels) -> None:
        """A number that a module holds, which counts these channels, a multiple or a part of them.

        Those of torch's layers follow by themselves when the layer is cut.
        """
        owner, _, key = name.rpartition(".")
        if isinstance(self._layers[owner], (*WRITING_LAYERS, *ENTRY_LAYERS)) and key.partition("[")[0] in OWN_NUMBERS:
            return
        before = self.sizes.setdefault(name, x)
        if before is not x:
            short, long = sorted((before, x), key=len)
            if not len(short) or len(long) % len(short):
                raise ValueError(f"{name} counts {len(before)} channels elsewhere, and {len(x)} here")
            self.add(np.repeat(short, len(long) // len(short)), long)

    def index(self, name: str, x: Channels, y: Channels) -> None:
        """A buffer of places in x, by which y is made: its entries get the new places of those that stay."""
        before = self.indices.setdefault(name, (x, y))
        for known, now in zip(before, (x, y), strict=True):
            if known is not now:
                self.add(known, now)

    def add(self, x: Channels, y: Channels) -> Channels:
        """An element-wise sum or product: channels that meet can only go together.

        Raises ValueError, with nothing changed, where their numbers differ.
        """
        if len(x) != len(y):
            raise ValueError(f"cannot add {len(x)} channels to {len(y)}")
        self._ties.append((x, y))
        self._found = None
        return x

    def tie_blocks(self, x: Channels, blocks: int) -> None:
        """So many blocks of neighbouring channels can only go as wholes."""
        if len(x) % blocks:
            raise ValueError(f"{len(x)} channels are not {blocks} groups of the same size")
        together = x.reshape(blocks, -1)
        self.add(np.repeat(together[:, 0], together.shape[1]), x)

    def tie_alike(self, x: Channels, blocks: int) -> None:
        """From each of so many blocks of neighbouring channels the same ones can go."""
        if len(x) % blocks:
            raise ValueError(f"{len(x)} channels are not {blocks} groups of the same size")
        if blocks > 1:
            first, *others = x.reshape(blocks, -1)
            for other in others:
                self.add(first, other)

    def shift(self, x: Channels, y: Channels) -> Channels:
        """A sum over a parameter-free shortcut that moves channels by position, as CIFAR ResNets have it.

        Channel i of x meets channel i + (width(y) - width(x)) // 2 of y; where there is none, x is cropped or y gets
        zero.  The two axes may keep different numbers of channels, but their order is bound, see
        `norton.pruning.alignment`.
        """
        self._shifts.append((x, y))
        self._found = None
        return y

    @staticmethod
    def cat(*parts: Channels) -> Channels:
        """A concatenation along channels."""
        return np.concatenate(parts)

    @staticmethod
    def flatten(x: Channels, positions: int) -> Channels:
        """A flattening of `positions` (height times width) positions into features, channels outermost."""
        return np.repeat(x, positions)

    def output(self, x: Channels) -> None:
        """What the network returns, which stays whole."""
        self.freeze(x, OUTPUT)

    def freeze(self, x: Channels, reason: str) -> None:
        """Keep all these channels."""
        if len(x):
            self._frozen.append((x, reason))
            self._found = None

    def freeze_layer(self, name: str, reason: str) -> None:
        """Keep all that a layer reads, passes and writes, or all that a parameter or buffer outside of layers meets."""
        others = [(known, x) for known, x, _ in self.parameters]
        others += [(known, x) for known, both in self.indices.items() for x in both]
        for known, x in [*self.reads, *self.passes, *self._written.items(), *others]:
            if known == name:
                self.freeze(x, reason)

    # What pruning asks

    @property
    def axes(self) -> Axes:
        if self._found is None:
            used = [x for _, x in self.reads] + [x for _, x in self.passes] + [x for _, x, _ in self.parameters]
            self._found = find_axes(self._count, self._ties, self._written, used, self._frozen, self._shifts)
        return self._found

    @property
    def writers(self) -> dict[int, list[str]]:
        """Axis → layers whose filters are its units, in the order in which they are called."""
        return dict(enumerate(self.axes.writers))

    @property
    def shifts(self) -> list[tuple[int, int]]:
        """(from, to) axes joined by a crop-or-pad shortcut, see `shift`."""
        return list(dict.fromkeys(self.axes.shifts))

    @property
    def frozen(self) -> dict[int, str]:
        """Axis → why it must stay whole, for the axes that layers write."""
        return self.axes.frozen

    @property
    def free_filters(self) -> int:
        """The filters of all layers that may go."""
        free = self.writers.keys() - self.frozen.keys()
        return sum(self.width(axis) * sum(self.filters(axis)) for axis in free if self.width(axis) > 1)

    @property
    def has_frozen(self) -> bool:
        """Whether any channels were said to stay."""
        return bool(self._frozen)

    @property
    def is_free(self) -> bool:
        """Whether all may go but what the network returns."""
        return set(self.frozen.values()) <= {OUTPUT}

    @property
    def left_whole(self) -> dict[str, str]:
        """Name of each frozen axis, after its first writer → why it must stay whole."""
        return {self.name(axis): reason for axis, reason in sorted(self.frozen.items())}

    def width(self, axis: int) -> int:
        """The units of an axis: channels, or groups of them."""
        return self.axes.widths[axis]

    def filters(self, axis: int) -> list[int]:
        """The filters of one unit, in each of the layers that write the axis."""
        return self.axes.filters[axis]

    def name(self, axis: int) -> str:
        """The first writer of an axis; `conv#2` for the second axis that a layer is the first to write."""
        return self.axes.names[axis]

    def axis_of(self, name: str) -> int:
        """The axis of that name, or the one that the first filter of a layer belongs to."""
        if name in self.axes.names:
            return self.axes.names.index(name)
        return int(self.axes.of[self._written[name][0]])

    def written(self, layer: str) -> Channels:
        """The channels that are a layer's filters."""
        return self._written[layer]

    def written_ones(self) -> list[tuple[str, Channels]]:
        """Layers, and the channels that are their filters."""
        return list(self._written.items())

    def layer_of(self, name: str) -> nn.Module:
        """The layer of that name."""
        return self._layers[name]

    def axis_at(self, x: Channels) -> np.ndarray:
        """The axis that the channel at each position belongs to; -1 for what no layer writes."""
        return self.axes.of[x]

    def unit_at(self, x: Channels) -> np.ndarray:
        """The unit of its axis that the channel at each position belongs to."""
        return self.axes.unit[x]

    def representatives(self, x: Channels) -> Channels:
        """For each channel the first one that it can only go together with."""
        ties = self._count, len(self._ties)
        if self._first[0] != ties:
            unit_of, units = connected(self._count, self._ties)
            first = np.full(units, self._count)
            np.minimum.at(first, unit_of, np.arange(self._count))
            self._first = ties, first[unit_of]
        return self._first[1][x]

    def axes_in(self, x: Channels) -> set[int]:
        """The axes that some channels belong to."""
        return set(np.unique(self.axis_at(x)).tolist()) - {-1}

    def gone_filters(self, keep: Mapping[int, Sequence[int]]) -> dict[str, list[int]]:
        """Layer → the filters that go when of each axis these units stay."""
        layers = {layer for axis in keep for layer in self.axes.writers[axis]}
        stay = {layer: positions(self, self._written[layer], keep) for layer in layers}
        return {layer: sorted(set(range(len(self._written[layer]))) - set(kept)) for layer, kept in stay.items()}

    def check_cut(self, keep: Mapping[int, Sequence[int]]) -> None:
        """Raise InputError where the network does not follow a cut; a wiring that a model declares is believed."""
        if self.proof is not None:
            self.proof(keep)

    def title(self) -> str:
        whole = len(self.frozen)
        return f"{len(self.writers)} axes of channels: {len(self.writers) - whole} can be pruned, {whole} stay whole"

    def rows(self) -> list[dict[str, Any]]:
        """A row per axis that layers write."""
        readers: dict[int, list[str]] = {axis: [] for axis in self.writers}
        for name, channels in self.reads:
            for axis in self.axes_in(channels):
                readers[axis].append(name)
        return [
            {
                "axis": self.name(axis),
                "width": self.width(axis),
                "other writers": _some(layers[1:]),
                "readers": _some(readers[axis]),
                "stays whole because": self.frozen.get(axis),
            }
            for axis, layers in self.writers.items()
        ]

    def _goes_by_groups(self, name: str, inputs: int) -> bool:
        """Whether groups of a convolution go as wholes, rather than the same channels from each: in the smaller units.

        A group has something of what it reads in each unit of the other way, so that both sides count.
        """
        layer = self._layers[name]
        groups = groups_of(layer)
        each = min(inputs, layer.out_channels) // groups if groups > 1 else 1
        if each == 1:
            if groups > 1:
                self._by_groups.add(name)
            return groups > 1
        self.doubtful[name] = None
        by_groups = (each <= groups or is_decomposed(layer)) != (name in self.other_way)
        if by_groups:
            self._by_groups.add(name)
        return by_groups

    def _tie_groups(self, x: Channels, written: Channels, groups: int) -> None:
        """Each group of a convolution goes as a whole, with what it reads and what it writes."""
        reads, writes = x.reshape(groups, -1), written.reshape(groups, -1)
        both = np.concatenate([reads, writes], axis=1)
        self.tie_blocks(both.flatten(), groups)


def _some(names: Sequence[str]) -> str | None:
    """The first two of them, and how many more."""
    return ", ".join([*names[:2], *([f"{len(names) - 2} more"] if len(names) > 2 else [])]) or None


def positions(wiring: Wiring, channels: Channels, keep: Mapping[int, Sequence[int]]) -> list[int]:
    """Where the kept channels are in a tensor of `channels`, in the original coordinates and the new order.

    Units that move do so within each run in which the units of one axis follow each other.
    """
    axis, unit = wiring.axis_at(channels), wiring.unit_at(channels)
    rank = unit.copy()  # place of a unit in the new order, -1 where it goes
    for changed in wiring.axes_in(channels) & keep.keys():
        kept, ranks = keep[changed], np.full(wiring.width(changed), -1)
        ranks[list(kept)] = np.arange(len(kept))
        own = axis == changed
        rank[own] = ranks[unit[own]]
    starts: np.ndarray = np.ones(len(axis), dtype=bool)
    starts[1:] = (axis[1:] != axis[:-1]) | (unit[1:] < unit[:-1])
    order = np.lexsort((rank, np.cumsum(starts)))  # stable
    return order[rank[order] >= 0].tolist()
