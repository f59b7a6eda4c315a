"""Speed and memory, measured side by side."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn

from norton.cli.tables import speed_sentence
from norton.measure.latency import inference_forms, latencies, peak_memory

pytestmark = pytest.mark.quick


class Recorder(nn.Module):
    """Writes down that it was called, and on what; copies share the book."""

    def __init__(self, name, book):
        super().__init__()
        self.name, self.book = name, [book]

    def __deepcopy__(self, memo):
        return Recorder(self.name, self.book[0])

    def forward(self, x):
        self.book[0].append((self.name, len(x)))
        return x


def test_networks_take_turns_at_the_same_batches_after_seeing_each():
    book = []
    nets = {name: Recorder(name, book) for name in ("a", "b")}
    one, two = torch.zeros(1, 3), torch.zeros(2, 3)
    found = latencies(nets, one, two, repeats=3)
    once = [(name, size) for size in (1, 2) for name in ("a", "b")]
    assert book == once + [(name, size) for size in (1, 2, 1) for name in ("a", "b") for _ in range(2)]
    assert set(found) == {"a", "b"}
    for latency in found.values():
        low, high = latency.quartiles
        assert 0 < low <= latency.milliseconds <= high
        assert latency.form == "dense"


def test_medians_not_means(monkeypatch):
    import norton.measure.latency

    times = iter([1.0, 2.0, 50.0, 3.0, 4.0])
    monkeypatch.setattr(norton.measure.latency, "forward_seconds", lambda *_: next(times))
    latency = latencies({"a": nn.Identity()}, torch.zeros(1), repeats=5)["a"]
    assert latency.milliseconds == 3000
    assert latency.quartiles == (2000, 4000)


def test_the_fastest_form_counts(monkeypatch):
    import norton.measure.latency

    net = norton.decompose(nn.Sequential(nn.Conv2d(4, 4, 3)), 1)
    assert inference_forms(net) == ("factored", "grouped", "composed")
    speed = {"factored": 3.0, "grouped": 1.0, "composed": 2.0}
    monkeypatch.setattr(norton.measure.latency, "forward_seconds", lambda net, *_: speed[net[0].form])
    before = net[0].form
    assert latencies({"a": net}, torch.zeros(1, 4, 5, 5))["a"][:2] == (1000, "grouped")
    assert net[0].form == before


def test_a_hopeless_form_is_not_timed_further(monkeypatch):
    import norton.measure.latency

    net = norton.decompose(nn.Sequential(nn.Conv2d(4, 4, 3)), 1)
    speed, timed = {"factored": 3.0, "grouped": 1.0, "composed": 2.9}, []

    def time(net, *_):
        timed.append(net[0].form)
        return speed[net[0].form]

    monkeypatch.setattr(norton.measure.latency, "forward_seconds", time)
    assert latencies({"a": net}, torch.zeros(1, 4, 5, 5), repeats=4)["a"][:2] == (1000, "grouped")
    assert {form: timed.count(form) for form in speed} == {"factored": 1, "grouped": 4, "composed": 4}


# Huge pages, which some systems hand out unasked, would make the faults few from the start.
FAULTS = """
import ctypes, resource, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE
from norton.measure.latency import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in (10_000_000, 100_000, 2_000_000):
        torch.zeros(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
found = [faults(), faults()]
keep_freed_memory()
print(*found, *(faults() for _ in range(3)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_freed_memory_is_kept_for_the_next_pass():
    """Pages that the system has to give: thousands again and again before, hardly any afterwards."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=env)
    _, before, *_, after = map(int, done.stdout.split())
    assert before > 5000 and after < 500


class Allocator(nn.Module):
    """Holds `count` tensors of 4 MB at once, one after the other `turns` times."""

    def __init__(self, count, turns):
        super().__init__()
        self.count, self.turns = count, turns

    def forward(self, x):
        for _ in range(self.turns):
            held = [x.new_zeros(1_000_000) for _ in range(self.count)]
        return len(held)


@pytest.mark.parametrize("count", [1, 3])
def test_peak_memory_is_what_is_held_at_once(count):
    once = peak_memory(Allocator(count, 1), torch.zeros(1))
    assert 4e6 * count <= once < 4e6 * count + 1e5
    again = peak_memory(Allocator(count, 2), torch.zeros(1))
    assert once <= again <= 2 * once  # the second lot is made before the first is let go of


def test_a_sentence_says_where_fewer_macs_are_not_faster():
    assert speed_sentence("small", 3.0, 1.5) == "small: 3.00 times fewer MACs, 1.50 times as fast"
    assert "not faster" in speed_sentence("small", 3.0, 0.99)
    assert "not faster" in speed_sentence("small", 3.0, 1.0)
    assert speed_sentence("large", 0.5, 0.8) == "large: 2.00 times more MACs, 0.80 times as fast"
