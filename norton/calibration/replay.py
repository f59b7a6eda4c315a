"""A network's forward pass over all calibration batches in step: it can stop at a layer, and go on after a change.

The network's own code runs, whatever it consists of, in a thread for each batch, of which one at a time goes on.  In a
copy of the network, without its weights, each layer is a `_Gate`: there the pass waits until it is asked to go on, and
then calls the layer that the network has by then.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from norton.calibration.layer_calls import LayerCalls, layers_of, record_calls
from norton.common.errors import InputError
from norton.graph.copies import deepcopied
from norton.graph.inputs import Inputs


class Replay:
    """The forward pass of a network on batches of images, which stops where it is asked to.

    Layers must be asked for in the order of `calls`.  A layer that is replaced in the network meanwhile is computed
    as what it is by then.

    keep: hold what later layers need of all batches, so that the network is computed once altogether; otherwise it is
    computed from the images each time, which takes the memory of one batch.
    """

    def __init__(self, net: nn.Module, batches: list[Inputs], *, keep: bool = True):
        self.net, self.batches, self.keep = net, batches, keep
        self._gated = _gated_copy(net)
        self._recorded: LayerCalls | None = None
        self._runs: list[_BatchRun] = []

    @property
    def recorded(self) -> LayerCalls:
        """What the forward pass of one image is; the first time that the network sees one."""
        if self._recorded is None:
            self._recorded = record_calls(self.net, self.batches[0].first(1))
        return self._recorded

    @property
    def calls(self) -> dict[str, int]:
        """Layer → the place of its first call, in the order in which they are computed."""
        return self.recorded.first

    @property
    def repeated(self) -> set[str]:
        """The layers that are called several times."""
        return self.recorded.repeated

    @property
    def loose(self) -> set[str]:
        """The layers that another network gives other parts of its images, see `LayerCalls`."""
        return self.recorded.loose

    def inputs(self, name: str) -> Iterator[Tensor]:
        """What a layer reads in each batch."""
        for run in self._at(self.calls[name]):
            yield run.value

    def outputs(self, name: str) -> Iterator[Tensor]:
        """What a layer gives in each batch."""
        for run in self._at(self.calls[name] + 0.5):
            yield run.value

    def readers(self, name: str) -> list[str | None]:
        """The layers that take a layer's output directly, None for what is no layer."""
        return self.recorded.readers[name]

    def held_per_image(self) -> int:
        """The most bytes that are held at once per image."""
        return self.recorded.held // self.batches[0].first(1).count

    def close(self) -> None:
        """End the passes that wait."""
        for run in self._runs:
            run.end()
        self._runs = []

    def _at(self, place: float) -> Iterator["_BatchRun"]:
        """Runs that wait at a call, a whole number, or behind it, half a one more."""
        if self.keep and not self._runs:
            self._runs = [_BatchRun(self._gated, batch, self.recorded.order) for batch in self.batches]
        if self._runs:
            for run in self._runs:
                yield run.advance(place)
            return
        for batch in self.batches:
            run = _BatchRun(self._gated, batch, self.recorded.order)
            try:
                yield run.advance(place)
            finally:
                run.end()


OTHER_WAY = (
    "calls its layers in another order for other images, so that they cannot be fitted one after the other; fit to "
    "weights, or give images of one kind"
)


class _Ended(BaseException):
    """Raised where a forward pass waits that nobody needs any more."""


class _Gate(nn.Module):
    """Takes the place of a layer: waits, and calls the layer that the network has by then under its name."""

    def __init__(self, net: nn.Module, name: str):
        super().__init__()
        self.__dict__ |= {"_net": net, "_name": name}  # not as a module of this one

    def _layer(self) -> nn.Module:
        return self._net.get_submodule(self._name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what networks ask by isinstance
        return type(self._layer())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer(), name)  # a weight, the number of filters, ...: some networks look at them

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        _run.current.wait(self._name, args[0] if args else next(iter(kwargs.values()), None))
        output = self._layer()(*args, **kwargs)
        _run.current.wait(self._name, output)
        return output


class _Current(threading.local):
    """The pass that a thread computes."""

    current: "_BatchRun"


_run = _Current()


def _gated_copy(net: nn.Module) -> nn.Module:
    """The network with a gate for each layer, wherever it is referred to; it shares all tensors with the network."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in [*net.parameters(), *nn.Module.buffers(net)]}
    for module in nn.Module.modules(net):
        shared |= {id(value): value for value in vars(module).values() if isinstance(value, Tensor)}
    gates = {id(layer): _Gate(net, name) for name, layer in layers_of(net).items()}
    return deepcopied(net, shared | gates)


class _BatchRun:
    """The forward pass of one batch, in a thread, which waits before and behind each layer.

    order: of the calls, of which all passes are held to be.  place: of the call where it waits, and half a one more
    behind it.  value: what the layer reads there, or gives.
    """

    def __init__(self, net: nn.Module, inputs: Inputs, order: Sequence[str]):
        self.net, self.inputs, self.order, self.place = net, inputs, order, -0.5
        self.value: Any = None
        self._error: BaseException | None = None
        self._ended = False
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._compute, daemon=True)
        self._thread.start()

    def advance(self, place: float) -> "_BatchRun":
        """Compute up to a place."""
        while self.place < place:
            self._go.release()
            self._waits.acquire()
            if self._error is not None:
                raise self._error
        return self

    def wait(self, name: str, value: Any) -> None:
        """Called by the gate of a layer, in the thread of this pass, before and behind it."""
        self.place, self.value = self.place + 0.5, value
        if int(self.place) >= len(self.order) or self.order[int(self.place)] != name:
            raise InputError(f"{type(self.net).__name__} {OTHER_WAY}")
        self._waits.release()
        self._go.acquire()
        self.value = None  # held no longer than the network itself does
        if self._ended:
            raise _Ended

    def end(self) -> None:
        self._ended = True
        self._go.release()
        self._thread.join()

    @torch.no_grad()
    def _compute(self) -> None:
        _run.current = self
        self._go.acquire()
        try:
            if not self._ended:
                self.inputs.map(Tensor.clone).call(self.net)  # which a network may change
                raise InputError(f"{type(self.net).__name__} {OTHER_WAY}")
        except _Ended:
            pass
        except BaseException as error:
            self._error = error
        self._waits.release()
