"""Who writes, passes and reads each channel axis of a network.

A model declares its wiring by walking its own forward pass with symbolic channels: layers read channels and write new
ones, normalisations pass them, sums tie them, concatenations and flattening lay them side by side.  Everything that
pruning must know (what is cut together, at which offsets, in which order) is derived from that.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

from torch import nn

from norton.common.tables import ShownAsTable

OUTPUT = "it is the network's output"  # the reason why the last layer stays whole


class Span(NamedTuple):
    """All channels of one axis, each standing `repeat` times in a row (flattened positions, or groups)."""

    axis: int
    repeat: int = 1


Channels = tuple[Span, ...]


class Wiring(ShownAsTable):
    """The channel axes of a network, named after the first layer that writes them.

    writers: axis → layers whose filters are its units; a layer with k times as many filters as the axis is wide has k
    filters a unit, side by side.  A grouped convolution ties the axis that it reads to the one that it writes: a unit
    is then a group (or several), and the layer is in `writers` alone.
    passes, reads: (layer, channels) for layers that keep channels apart (BatchNorm) and for those that mix them.
    parameters: (name, channels, dimension) for parameters outside of layers, such as a scale per channel.
    shifts: (from, to) axes joined by a crop-or-pad shortcut, see `shift`.
    frozen: axis → why none of its channels can be removed.
    """

    def __init__(self, net: nn.Module):
        self._layers = dict(net.named_modules())
        self._parent: list[int] = []
        self._widths: list[int] = []  # as written; merging and grouping changes `_units` of the axis that is left
        self._units: list[int] = []
        self._written: dict[str, Channels] = {}
        self._frozen: dict[int, str] = {}
        self._shifts: list[tuple[int, int]] = []
        self.writers: dict[int, list[str]] = {}
        self.passes: list[tuple[str, Channels]] = []
        self.reads: list[tuple[str, Channels]] = []
        self.parameters: list[tuple[str, Channels, int]] = []

    # What a model declares

    def input(self, channels: int) -> Channels:
        """The network's input, which nobody prunes."""
        x = (Span(self._new_axis(channels)),)
        self.freeze(x, "it depends on the network's input, or on channels that cannot be followed")
        return x

    def unwritten(self, channels: int) -> Channels:
        """Channels that no layer writes: the entries of a parameter, until they meet those of a layer."""
        return (Span(self._new_axis(channels)),)

    def layer(self, name: str, x: Channels) -> Channels:
        """A convolution or linear layer: reads x and writes an axis of its own.

        A layer that is called again reads and writes what it did before.
        """
        if name in self._written:
            if (before := dict(self.reads).get(name)) is not None:
                self.add(before, x)
            elif self._only_axis(x) != self.axis_of(name):
                raise ValueError(f"{name} is grouped and called twice, on other channels")
            return self._written[name]
        layer = self._layers[name]
        width = layer.out_channels if hasattr(layer, "out_channels") else layer.out_features
        axis = self._new_axis(width)
        self.writers[axis] = [name]
        self._written[name] = (Span(axis),)
        if getattr(layer, "groups", 1) == 1:
            self.reads.append((name, x))
        else:
            self._merge(self._only_axis(x), axis, gcd(self.width(self._only_axis(x)), layer.groups))
        return self._written[name]

    def norm(self, name: str, x: Channels) -> Channels:
        """A layer with one entry per channel, such as BatchNorm."""
        if (before := dict(self.passes).get(name)) is not None:
            return self.add(before, x)
        self.passes.append((name, x))
        return x

    def group_norm(self, name: str, x: Channels) -> Channels:
        """A GroupNorm: its groups can be removed as wholes."""
        axis = self._only_axis(x)
        self._units[axis] = gcd(self._units[axis], self._layers[name].num_groups)
        return self.norm(name, x)

    def parameter(self, name: str, x: Channels, dim: int) -> Channels:
        """A parameter or buffer outside of layers that has one entry per channel along `dim`."""
        for known, before, along in self.parameters:
            if known == name and along != dim:
                raise ValueError(f"{name} has channels along dimension {along} elsewhere, and here along {dim}")
            if known == name:
                return self.add(before, x)
        self.parameters.append((name, x, dim))
        return x

    def add(self, x: Channels, y: Channels) -> Channels:
        """An element-wise sum or product: both sides become one axis and share their kept channels.

        Concatenated channels must be side by side in the same way.  Raises ValueError, with nothing changed, where
        they don't.
        """
        x, y = self.resolved(x), self.resolved(y)
        sizes = [[self.width(span.axis) * span.repeat for span in channels] for channels in (x, y)]
        if sum(sizes[0]) != sum(sizes[1]):
            raise ValueError(f"cannot add {sum(sizes[0])} channels to {sum(sizes[1])}")
        if sizes[0] != sizes[1]:
            raise ValueError(f"cannot add channels concatenated of {sizes[0]} to channels of {sizes[1]}")
        for a, b in ((self.axis(one), self.axis(other)) for one, other in zip(x, y, strict=True)):
            self._merge(a, b, gcd(self.width(a), self.width(b)))
        return x

    def shift(self, x: Channels, y: Channels) -> Channels:
        """A sum over a parameter-free shortcut that moves channels by position, as CIFAR ResNets have it.

        Channel i of x meets channel i + (width(y) - width(x)) // 2 of y; where there is none, x is cropped or y gets
        zero.  The two axes may keep different numbers of channels, but their order is bound, see
        `norton.pruning.alignment`.
        """
        edge = self._only_axis(x), self._only_axis(y)
        if any(self.resolved(channels)[0].repeat != 1 for channels in (x, y)):
            raise ValueError("flattened or grouped channels cannot be shifted")
        if edge not in self.shifts:
            self._shifts.append(edge)
        return y

    @staticmethod
    def cat(*parts: Channels) -> Channels:
        """A concatenation along channels."""
        return tuple(span for part in parts for span in part)

    @staticmethod
    def flatten(x: Channels, positions: int) -> Channels:
        """A flattening of `positions` (height times width) positions into features, channels outermost."""
        return tuple(Span(span.axis, span.repeat * positions) for span in x)

    def output(self, x: Channels) -> None:
        """What the network returns, which stays whole."""
        self.freeze(x, OUTPUT)

    def freeze(self, x: Channels, reason: str) -> None:
        """Keep all these channels."""
        for span in x:
            self._frozen.setdefault(span.axis, reason)

    def freeze_axis(self, axis: int, reason: str) -> None:
        """Keep all channels of an axis."""
        self._frozen.setdefault(axis, reason)

    def freeze_layer(self, name: str, reason: str) -> None:
        """Keep all that a layer reads, passes and writes, or all entries of a parameter outside of layers."""
        parameters = [(known, x) for known, x, _ in self.parameters]
        for known, x in [*self.reads, *self.passes, *self._written.items(), *parameters]:
            if known == name:
                self.freeze(x, reason)

    # What pruning asks

    def axis(self, span_or_axis: Span | int) -> int:
        """The axis that an axis was merged into."""
        axis = span_or_axis.axis if isinstance(span_or_axis, Span) else span_or_axis
        while self._parent[axis] != axis:
            axis = self._parent[axis]
        return axis

    def width(self, axis: int) -> int:
        """The units of an axis: channels, or groups of them."""
        return self._units[self.axis(axis)]

    def filters(self, axis: int) -> list[int]:
        """The filters of one unit, in each of the layers that write the axis."""
        axis = self.axis(axis)
        return [self._widths[self._written[layer][0].axis] // self.width(axis) for layer in self.writers[axis]]

    def name(self, axis: int) -> str:
        return self.writers[self.axis(axis)][0]

    def axis_of(self, layer: str) -> int:
        """The axis a layer writes to."""
        if layer not in self._written:
            raise KeyError(layer)
        return self.axis(self._written[layer][0])

    def written(self, layer: str) -> Channels:
        """The channels that are a layer's filters."""
        return self._written[layer]

    def resolved(self, x: Channels) -> Channels:
        """The same channels by the axes that were merged, `repeat` counting what a unit takes."""
        return tuple(
            Span(self.axis(span), span.repeat * self._widths[span.axis] // self.width(span.axis)) for span in x
        )

    @property
    def shifts(self) -> list[tuple[int, int]]:
        return [(self.axis(a), self.axis(b)) for a, b in self._shifts]

    @property
    def frozen(self) -> dict[int, str]:
        """Axis → why it must stay whole, for the axes that layers write."""
        found: dict[int, str] = {}
        for axis, reason in self._frozen.items():
            found.setdefault(self.axis(axis), reason)
        for axis, width in enumerate(self._widths):
            if self.width(axis) == 1 < width:
                found.setdefault(self.axis(axis), "its channels are mixed, so that none can go alone")
        for axis in {axis for edge in self._shifts for axis in edge}:
            if self.width(axis) != self._widths[axis]:
                found.setdefault(self.axis(axis), "it is grouped, and a shortcut moves its channels by position")
        # A shortcut binds the order of two axes, and what is frozen keeps its order.
        while bound := [edge for edge in self.shifts if (edge[0] in found) != (edge[1] in found)]:
            for a, b in bound:
                reason = found.get(a) or found[b]
                found.setdefault(a, reason), found.setdefault(b, reason)
        return {axis: reason for axis, reason in found.items() if axis in self.writers}

    @property
    def left_whole(self) -> dict[str, str]:
        """First writer of each frozen axis → why it must stay whole."""
        return {self.name(axis): reason for axis, reason in self.frozen.items()}

    def title(self) -> str:
        whole = len(self.frozen)
        return f"{len(self.writers)} axes of channels: {len(self.writers) - whole} can be pruned, {whole} stay whole"

    def rows(self) -> list[dict[str, Any]]:
        """A row per axis that layers write."""
        frozen = self.frozen
        readers: dict[int, list[str]] = {axis: [] for axis in self.writers}
        for name, channels in self.reads:
            for axis in {self.axis(span) for span in channels} & readers.keys():
                readers[axis].append(name)
        return [
            {
                "axis": self.name(axis),
                "width": self.width(axis),
                "other writers": _some(layers[1:]),
                "readers": _some(readers[axis]),
                "stays whole because": frozen.get(axis),
            }
            for axis, layers in self.writers.items()
        ]

    def _new_axis(self, width: int) -> int:
        self._parent.append(len(self._parent))
        self._widths.append(width)
        self._units.append(width)
        return self._parent[-1]

    def _merge(self, a: int, b: int, units: int) -> None:
        """Make one axis of two, of so many units."""
        first, second = sorted((a, b), key=lambda axis: (axis not in self.writers, axis))
        self._units[first] = units
        if first != second:
            self._parent[second] = first
            if second in self.writers:
                self.writers[first] = self.writers.get(first, []) + self.writers.pop(second)

    def _only_axis(self, x: Channels) -> int:
        if len(x) != 1:
            raise ValueError("concatenated channels are not one axis")
        return self.axis(x[0])


def _some(names: Sequence[str]) -> str | None:
    """The first two of them, and how many more."""
    return ", ".join([*names[:2], *([f"{len(names) - 2} more"] if len(names) > 2 else [])]) or None


def positions(wiring: Wiring, channels: Channels, keep: Mapping[int, Sequence[int]]) -> list[int]:
    """Where the kept channels are in a tensor of `channels`, in the original coordinates and the new order."""
    result, offset = [], 0
    for axis, repeat in wiring.resolved(channels):
        width = wiring.width(axis)
        result += [offset + unit * repeat + i for unit in keep.get(axis, range(width)) for i in range(repeat)]
        offset += width * repeat
    return result
