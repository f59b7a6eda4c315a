"""How long networks take, measured side by side so that noise of the machine hits all of them."""

import copy
import time
from collections.abc import Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from norton.decomposition.cp import CPConv2d, set_form_


class Latency(NamedTuple):
    """Median time of a batch in milliseconds, and the form of the decomposed layers that reached it."""

    milliseconds: float
    form: str


@torch.inference_mode()
def latencies(nets: Mapping[str, nn.Module], batch: Tensor, repeats: int = 7) -> dict[str, Latency]:
    """Name → latency of each network on `batch`, on the batch's device; the networks take turns.

    A network with decomposed layers is timed in each of its forms, and the fastest one counts.
    """
    candidates = {}
    for name, net in nets.items():
        decomposed = any(isinstance(layer, CPConv2d) for layer in net.modules())
        for form in ("factored", "grouped", "composed") if decomposed else ("dense",):
            candidate = copy.deepcopy(net).eval().to(batch.device)
            candidates[name, form] = set_form_(candidate, form) if decomposed else candidate
    times = {key: [] for key in candidates}
    for turn in range(repeats + 1):
        for key, net in candidates.items():
            elapsed = _time(net, batch)
            if turn:  # the first one warms up
                times[key].append(elapsed)
    found = {key: 1000 * median(values) for key, values in times.items()}
    return {
        name: min((Latency(ms, form) for (other, form), ms in found.items() if other == name), key=lambda x: x[0])
        for name in nets
    }


def _time(net: nn.Module, batch: Tensor) -> float:
    _synchronise(batch)
    start = time.perf_counter()
    net(batch)
    _synchronise(batch)
    return time.perf_counter() - start


def _synchronise(batch: Tensor) -> None:
    if batch.is_cuda:
        torch.cuda.synchronize(batch.device)
