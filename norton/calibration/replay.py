"""A network's forward pass over all calibration batches in step: it can stop at a layer, and go on after a change."""

import copy
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from norton.graph.recording import trace


class Replay:
    """The forward pass of a network on batches of images, which stops where it is asked to.

    Layers must be asked for in the order of `calls`.  A layer that is replaced in the network meanwhile is computed
    as what it is by then.

    keep: hold what later layers need of all batches, so that the network is computed once altogether; otherwise it is
    computed from the images each time, which takes the memory of one batch.
    """

    def __init__(self, net: nn.Module, batches: list[Tensor], *, keep: bool = True):
        self.net, self.batches, self.keep = net, batches, keep
        traced = copy.deepcopy(net)  # which takes the constants that the forward pass makes
        self.graph = trace(traced)
        self.nodes = list(self.graph.nodes)
        own = set(dict(net.named_parameters())) | set(dict(net.named_buffers()))
        attributes = {node.target for node in self.nodes if node.op == "get_attr"} - own
        self.constants = {name: getattr(traced, name) for name in attributes}
        self.last_uses = _last_uses(self.nodes)
        self._runs: list[_BatchRun] = []
        self.calls: dict[str, int] = {}  # layer → where it is called first
        times: Counter[nn.Module] = Counter()
        for place, node in enumerate(self.nodes):
            if node.op == "call_module":
                self.calls.setdefault(node.target, place)
                times[net.get_submodule(node.target)] += 1
        self.repeated = {name for name in self.calls if times[net.get_submodule(name)] > 1}  # called several times

    def inputs(self, name: str) -> Iterator[Tensor]:
        """What a layer reads in each batch."""
        place = self.calls[name]
        for run in self._at(place):
            args, kwargs = run.fetch_args_kwargs_from_env(self.nodes[place])
            yield args[0] if args else next(iter(kwargs.values()))

    def outputs(self, name: str) -> Iterator[Tensor]:
        """What a layer gives in each batch."""
        place = self.calls[name]
        for run in self._at(place + 1):
            yield run.env[self.nodes[place]]

    def readers(self, name: str) -> list[str | None]:
        """The layers that take a layer's output directly, None for what is no layer."""
        users = self.nodes[self.calls[name]].users
        return [user.target if user.op == "call_module" else None for user in users]

    @torch.no_grad()
    def held_per_image(self) -> float:
        """The most bytes that are held at once per image."""
        run = _BatchRun(self, self.batches[0][:1])
        return max(run.advance(place + 1).held for place in range(len(self.nodes)))

    @torch.no_grad()
    def _at(self, place: int) -> Iterator["_BatchRun"]:
        if self.keep and not self._runs:
            self._runs = [_BatchRun(self, batch) for batch in self.batches]
        for run in self._runs or (_BatchRun(self, batch) for batch in self.batches):
            yield run.advance(place)


class _BatchRun(fx.Interpreter):
    """The forward pass of one batch, computed up to node number `place`."""

    def __init__(self, replay: Replay, images: Tensor):
        super().__init__(replay.net, graph=replay.graph, garbage_collect_values=False)
        self.replay, self.images, self.place = replay, images, 0

    def placeholder(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        return self.images.clone()  # which a network may change

    def fetch_attr(self, target: str) -> Any:
        return self.replay.constants[target] if target in self.replay.constants else super().fetch_attr(target)

    def advance(self, place: int) -> "_BatchRun":
        """Compute up to a node, without it."""
        for node in self.replay.nodes[self.place : place]:
            self.env[node] = self.run_node(node)
            for used in self.replay.last_uses[node]:
                del self.env[used]
        self.place = max(self.place, place)
        return self

    @property
    def held(self) -> int:
        """Bytes of the tensors it holds."""
        return sum(value.numel() * value.element_size() for value in self.env.values() if isinstance(value, Tensor))


def _last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node → the nodes whose values nobody needs after it."""
    found: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        for used in node.all_input_nodes:
            if used not in seen:
                seen.add(used)
                found[node].append(used)
    return found
