"""How long networks take and how much memory, measured side by side so that noise of the machine hits all of them."""

import ctypes
import functools
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from norton.graph.copies import copied
from norton.graph.inputs import Inputs
from norton.graph.layers import Form, has_forms, set_form_

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # what mallopt calls them, from malloc.h
GIVE_UP_AT = 3  # times the fastest form; more than the noise of a busy machine
# Images of one size, or of several, as detectors take them; or all that a network is called with.
ImageBatch: TypeAlias = Tensor | Sequence[Tensor] | Inputs


class Latency(NamedTuple):
    """Median time of a batch in milliseconds, in which form, and the quartiles.

    form: of the decomposed layers, `dense` if there are none; of a deployed network its choice in a few words.
    """

    milliseconds: float
    form: str
    quartiles: tuple[float, float]


@torch.inference_mode()
def latencies(nets: Mapping[str, nn.Module], *batches: ImageBatch, repeats: int = 7) -> dict[str, Latency]:
    """Name → latency of each network on the batches' device; the networks take turns.

    Every network sees every batch once to warm up, and then one batch per repeat, all networks the same: twice in a
    row, of which the second pass counts, as for a network that runs alone.  A network with decomposed layers that is
    not deployed is timed in each of its forms, and the fastest one counts; a form that is `GIVE_UP_AT` times slower
    than another at the first repeat is not timed further.
    """
    keep_freed_memory()
    device = device_of(batches[0])
    candidates: dict[tuple[str, str], nn.Module] = {}
    for name, net in nets.items():
        for form in inference_forms(net):
            candidates[name, form] = _copy(net, form, device)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in candidates}
    for turn in range(-len(batches), repeats):
        for key, net in candidates.items():
            batch = batches[turn % len(batches)]
            _call(net, batch)  # so that the caches hold this network, not the one before
            if turn >= 0:
                times[key].append(1000 * forward_seconds(net, batch))
        if turn == 0:
            fastest = {name: min(times[name, form][0] for form in inference_forms(net)) for name, net in nets.items()}
            candidates = {key: net for key, net in candidates.items() if times[key][0] < GIVE_UP_AT * fastest[key[0]]}
    found = {key: Latency(median(times[key]), key[1], _quartiles(times[key])) for key in candidates}
    return {name: min(latency for (of, _), latency in found.items() if of == name) for name in nets}


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, instead of giving it back and asking for it again.

    glibc gives large blocks back to the system at once, so that each pass of a network waits for fresh pages: a third
    of its time for networks of small layers, more or less by chance.  Serving processes run with another allocator or
    with MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1, which this sets (mallopt(3)).  Elsewhere nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, -1)  # never trim
        libc.mallopt(_MMAP_MAX, 0)  # no block gets pages of its own, which are given back with it


def inference_forms(net: nn.Module) -> tuple[str, ...]:
    """The forms in which a network can compute while it is not trained: one where nothing is decomposed any more."""
    if (deployment := getattr(net, "deployment", None)) is not None:
        return (deployment.summary(),)
    decomposed = any(has_forms(layer) for layer in nn.Module.modules(net))
    return get_args(Form) if decomposed else ("dense",)


@torch.inference_mode()
def peak_memory(net: nn.Module, batch: ImageBatch, form: str = "dense") -> int:
    """Bytes that one forward pass allocates at most, beside weights and batch; on the batch's device.  net: untouched.

    On a CPU these are the tensors that torch allocates, without the scratch space of the libraries below it.
    """
    device = device_of(batch)
    net = _copy(net, form, device)
    _call(net, batch)  # what only the first pass makes does not count
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _call(net, batch)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports about GPUs that are not there
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _call(net, batch)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0)


def _copy(net: nn.Module, form: str, device: torch.device) -> nn.Module:
    net = copied(net).eval().to(device)
    return set_form_(net, cast(Form, form)) if form in get_args(Form) else net


def _call(net: nn.Module, batch: ImageBatch) -> None:
    if isinstance(batch, Inputs):
        batch.call(net)
    else:
        net(batch)


def device_of(batch: ImageBatch) -> torch.device:
    """Where a batch is."""
    return (batch.tensors if isinstance(batch, Inputs) else batch)[0].device


def _quartiles(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = quantiles(values, n=4, method="inclusive")
    return low, high


def forward_seconds(net: nn.Module, batch: ImageBatch) -> float:
    """Seconds that one forward pass takes, to its end on the batch's device."""
    device = device_of(batch)
    _synchronise(device)
    start = time.perf_counter()
    _call(net, batch)
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
