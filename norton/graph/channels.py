"""What is known of a network's channels while its recorded forward pass is followed, node by node.

`norton.graph.tracing` visits the nodes, and the rules of `norton.graph.rules` say what each operation does with
channels; both do it in terms of a `ChannelTracer`.
"""

from collections.abc import Callable, Iterable, Set
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from norton.graph.axes import Channels
from norton.graph.nodes import first_argument, place_of, reads_kernel_size, value_of
from norton.graph.parameters import free_tensors, goes_with, sharing_layers
from norton.graph.wiring import Wiring


class LocatedChannels(NamedTuple):
    """Where channels are in a tensor.

    ids: which channel each number of the tensor belongs to, with size 1 along the dimensions that make no difference.
    shifted: by a crop-or-pad shortcut.
    """

    ids: Tensor
    shifted: bool = False

    @property
    def dims(self) -> list[int]:
        """The dimensions along which there are several channels."""
        return [dim for dim, size in enumerate(self.ids.shape) if size > 1]

    def along(self, dim: int, size: int) -> Channels | None:
        """The channel at each of `size` positions of a dimension; None if another dimension makes a difference too."""
        if any(other != dim % self.ids.dim() for other in self.dims):
            return None
        return self.ids.flatten().expand(size).numpy()


Located: TypeAlias = LocatedChannels | list | None  # of a node that gives several tensors, a list


def located(channels: Channels, dim: int, dims: int) -> LocatedChannels:
    """Channels along a dimension of a tensor of `dims` dimensions."""
    shape = [1] * dims
    shape[dim] = -1
    return LocatedChannels(torch.from_numpy(np.ascontiguousarray(channels)).view(shape))


def compressed(ids: Tensor) -> Tensor:
    """Ids with size 1 along the dimensions that make no difference."""
    for dim, size in enumerate(ids.shape):
        if size > 1 and (ids.stride(dim) == 0 or bool((ids == ids.narrow(dim, 0, 1)).all())):
            ids = ids.narrow(dim, 0, 1)
    return ids


def located_in(found: Located) -> list[LocatedChannels]:
    """All channels of a node, whether it gives one tensor or several."""
    if isinstance(found, list):
        return [x for part in found for x in located_in(part)]
    return [] if found is None else [found]


class ChannelTracer:
    """Where the channels of one network are in what its nodes compute, and the wiring that follows from it.

    located: node → its channels; None where it has none, or none that can be followed.
    counts: node that is a number or a shape → the channels whose number it depends on.
    shapes: node that is a shape → whose, and of which dimensions.
    kept_whole: layer, or parameter outside of layers → why all of its channels stay.
    """

    def __init__(self, net: nn.Module, other_way: Set[Any] = frozenset()):
        self.net, self.wiring = net, Wiring(net, other_way)
        self.located: dict[fx.Node, Located] = {}
        self.counts: dict[fx.Node, Channels] = {}
        self.shapes: dict[fx.Node, tuple[fx.Node, range]] = {}
        self.kept_whole = {
            name: f"{name}: it shares a parameter with another layer" for name in sorted(sharing_layers(net))
        }
        self.free_tensors = free_tensors(net)
        self._followed: set[tuple[fx.Node, fx.Node]] = set()  # (parameter or buffer, what takes it as a rule knows)

    # What is known of a node

    def at(self, node: Any) -> LocatedChannels | None:
        """The channels of what a node gives, if that is one tensor."""
        found = self.located.get(node) if isinstance(node, fx.Node) else None
        return found if isinstance(found, LocatedChannels) else None

    def input(self, node: fx.Node) -> LocatedChannels | None:
        """The channels of a node's first argument."""
        return self.at(first_argument(node))

    def arguments(self, node: fx.Node) -> list[LocatedChannels]:
        """The channels of all arguments of a node that have some."""
        return [x for arg in node.all_input_nodes for x in located_in(self.located[arg])]

    def layer(self, node: fx.Node) -> nn.Module:
        """The layer that a node calls."""
        return self.net.get_submodule(str(node.target))

    # What a rule says

    def unknown(self, node: fx.Node, reason: str = "tracing does not follow it") -> None:
        """An operation after which channels cannot be told apart, or could not be removed; gives no channels."""
        self.freeze_arguments(node, reason)
        if node.op == "call_module":  # which may also be called where it can be followed
            self.keep_whole(str(node.target), f"{place_of(node)}: {reason}")

    def freeze(self, x: LocatedChannels | None, node: fx.Node, reason: str) -> None:
        """Keep all channels of a tensor, for what a node does with it."""
        if x is not None:
            self.wiring.freeze(x.ids.flatten().numpy(), f"{place_of(node)}: {reason}")

    def freeze_arguments(self, node: fx.Node, reason: str) -> None:
        """Keep all channels that a node takes, and those whose number it takes."""
        for x in self.arguments(node):
            self.freeze(x, node, reason)
        self.freeze_counts(node, node.all_input_nodes)

    def freeze_counts(self, node: fx.Node, counts: Iterable[fx.Node]) -> None:
        """Keep all channels whose number a node takes by one of these arguments."""
        for count in counts:
            if (counted := self.counts.get(count)) is not None:
                self.wiring.freeze(counted, f"{place_of(node)}: it computes with the number of its channels")

    def declare(self, node: fx.Node, x: LocatedChannels, declaration: Callable, *arguments: Any) -> LocatedChannels:
        """x after what a method of the wiring says of it, or frozen with all that meets there where that refuses."""
        try:
            declaration(*arguments)
        except ValueError as error:
            self.unknown(node, str(error))
            self.freeze(x, node, str(error))
            if isinstance(arguments[0], str):  # what the layer or parameter met before stays whole, too
                self.keep_whole(arguments[0], f"{place_of(node)}: {error}")
        return x

    def declare_entries(
        self, node: fx.Node, x: LocatedChannels, channels: Channels, tensor: fx.Node, dim: int
    ) -> LocatedChannels:
        """x, of which a free tensor has an entry per channel along `dim`; all tensors of a norm are cut together."""
        self.read_by(tensor, node)
        owner, _, key = str(tensor.target).rpartition(".")
        if not goes_with(self.net.get_submodule(owner), key):
            return self.declare(node, x, self.wiring.parameter, str(tensor.target), channels, dim)
        return self.declare(node, x, self.wiring.norm, owner, channels)

    def read_by(self, tensor: fx.Node, node: fx.Node) -> None:
        """A node takes a parameter or buffer in a way that is followed."""
        self._followed.add((tensor, node))

    def is_read_by(self, tensor: fx.Node, node: fx.Node) -> bool:
        """Whether a rule has said that a node takes a parameter or buffer in a way that is followed."""
        return (tensor, node) in self._followed

    def keep_whole(self, name: str, reason: str) -> None:
        """Keep all that a layer or a parameter outside of layers meets, anywhere; the first reason counts."""
        self.kept_whole.setdefault(name, reason)

    # What follows from all nodes

    def check_tensors(self, graph: fx.Graph) -> None:
        """Keep parameters and buffers whole, or their layers, that a graph also reads in a way that no rule follows."""
        for node in graph.nodes:
            if node.op != "get_attr" or (self.located[node] is not None and str(node.target) in self.free_tensors):
                continue
            others = [user for user in node.users if (node, user) not in self._followed and not reads_kernel_size(user)]
            if others:
                name, owner = str(node.target), str(node.target).rpartition(".")[0]
                self.keep_whole(name, f"{place_of(others[0])}: it reads {name} in another way")
                if value_of(node).numel() > 1:
                    for end in (place for place, sign in enumerate(name) if sign == "."):  # of a part of a layer, too
                        self.keep_whole(name[:end], f"{place_of(others[0])}: it takes a parameter of {owner}")

    def finished(self) -> Wiring:
        """The wiring, with what must stay whole wherever it was met."""
        for name, reason in self.kept_whole.items():
            self.wiring.freeze_layer(name, reason)
        return self.wiring
