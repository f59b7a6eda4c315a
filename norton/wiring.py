"""Who writes, passes and reads each channel axis of a network.

A model declares its wiring by walking its own forward pass with symbolic channels: layers read channels and write new
ones, normalisations pass them, sums tie them, concatenations and flattening lay them side by side.  Everything that
pruning must know (what is cut together, at which offsets, in which order) is derived from that.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn


class Span(NamedTuple):
    """All channels of one axis, each standing `repeat` times in a row (flattened positions)."""

    axis: int
    repeat: int = 1


Channels = tuple[Span, ...]


class Wiring:
    """The channel axes of a network, named after the first layer that writes them.

    widths: axis → number of channels.  writers: axis → layers whose filters are its channels.
    passes, reads: (layer, channels) for layers that keep channels apart (BatchNorm) and for those that mix them.
    shifts: (from, to) axes joined by a crop-or-pad shortcut, see `shift`.
    """

    def __init__(self, net: nn.Module):
        self._layers = dict(net.named_modules())
        self._parent: list[int] = []
        self._widths: list[int] = []
        self.writers: dict[int, list[str]] = {}
        self.passes: list[tuple[str, Channels]] = []
        self.reads: list[tuple[str, Channels]] = []
        self._shifts: list[tuple[int, int]] = []

    # What a model declares

    def input(self, channels: int) -> Channels:
        """The network's input, which nobody prunes."""
        return (Span(self._new_axis(channels, writer=None)),)

    def layer(self, name: str, x: Channels) -> Channels:
        """A convolution or linear layer: reads x and writes an axis of its own."""
        self.reads.append((name, x))
        layer = self._layers[name]
        width = layer.out_channels if hasattr(layer, "out_channels") else layer.out_features
        return (Span(self._new_axis(width, writer=name)),)

    def norm(self, name: str, x: Channels) -> Channels:
        """A layer with one entry per channel, such as BatchNorm."""
        self.passes.append((name, x))
        return x

    def add(self, x: Channels, y: Channels) -> Channels:
        """An element-wise sum: both sides become one axis and share their kept channels."""
        a, b = self._only_axis(x), self._only_axis(y)
        if self.width(a) != self.width(b):
            raise ValueError(f"cannot add {self.width(a)} channels to {self.width(b)}")
        if a != b:
            first, second = min(a, b), max(a, b)
            self._parent[second] = first
            self.writers[first] += self.writers.pop(second)
        return (Span(min(a, b)),)

    def shift(self, x: Channels, y: Channels) -> Channels:
        """A sum over a parameter-free shortcut that moves channels by position, as CIFAR ResNets have it.

        Channel i of x meets channel i + (width(y) - width(x)) // 2 of y; where there is none, x is cropped or y gets
        zero.  The two axes may keep different numbers of channels, but their order is bound, see
        `norton.pruning.alignment`.
        """
        self._shifts.append((self._only_axis(x), self._only_axis(y)))
        return y

    @staticmethod
    def cat(*parts: Channels) -> Channels:
        """A concatenation along channels."""
        return tuple(span for part in parts for span in part)

    @staticmethod
    def flatten(x: Channels, positions: int) -> Channels:
        """A flattening of `positions` (height times width) positions into features, channels outermost."""
        return tuple(Span(span.axis, span.repeat * positions) for span in x)

    # What pruning asks

    def axis(self, span_or_axis: Span | int) -> int:
        """The axis that an axis was merged into."""
        axis = span_or_axis.axis if isinstance(span_or_axis, Span) else span_or_axis
        while self._parent[axis] != axis:
            axis = self._parent[axis]
        return axis

    def width(self, axis: int) -> int:
        return self._widths[self.axis(axis)]

    def name(self, axis: int) -> str:
        return self.writers[self.axis(axis)][0]

    def axis_of(self, layer: str) -> int:
        """The axis a layer writes to."""
        for axis, writers in self.writers.items():
            if layer in writers:
                return axis
        raise KeyError(layer)

    @property
    def shifts(self) -> list[tuple[int, int]]:
        return [(self.axis(a), self.axis(b)) for a, b in self._shifts]

    def _new_axis(self, width: int, writer: str | None) -> int:
        axis = len(self._parent)
        self._parent.append(axis)
        self._widths.append(width)
        if writer is not None:
            self.writers[axis] = [writer]
        return axis

    def _only_axis(self, x: Channels) -> int:
        if len(x) != 1 or x[0].repeat != 1:
            raise ValueError("sums of concatenated or flattened channels cannot be declared")
        return self.axis(x[0])


def positions(wiring: Wiring, channels: Channels, keep: dict[int, Sequence[int]]) -> list[int]:
    """Where the kept channels stand in a tensor of `channels`, in the original coordinates and the new order."""
    result, offset = [], 0
    for span in channels:
        width = wiring.width(span.axis)
        kept = keep.get(wiring.axis(span), range(width))
        result += [offset + channel * span.repeat + i for channel in kept for i in range(span.repeat)]
        offset += width * span.repeat
    return result
