"""Networks whose code decides by chance, by Python's random numbers or NumPy's, such as stochastic depth.

Such a forward pass is recorded several times: with the lowest numbers that can be drawn, with the highest, and with
some in between.  What all of these do is followed, and where they differ, what one of them passes on to what others
do as well stays whole; that holds for any mixture of them, too.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import fx

from norton.graph.channels import ChannelTracer, located_in
from norton.graph.deciding import CALLS
from norton.graph.execution import LINE
from norton.graph.nodes import name_of

REASON = "the forward pass goes another way here each time, by chance"
WAYS = 6  # lowest numbers, highest numbers, seeds
_WORDS = (0, 0x12DD9BB3)  # of a Mersenne Twister's state, for which it gives no bit and all of them
_FIXED = 500  # words of 624; the others are random, for code that draws until a number fits


@dataclass
class Draws:
    """Whether random numbers were drawn."""

    used: bool = False


@contextmanager
def drawing(way: int) -> Iterator[Draws]:
    """Let Python's random numbers, and NumPy's, be drawn in one of several ways; afterwards as if none had been."""
    python, arrays, draws = random.getstate(), _of_numpy(), Draws()
    words = np.random.RandomState(way).randint(0, 1 << 32, 624, np.uint32)
    words[: _FIXED if way < len(_WORDS) else 0] = _WORDS[min(way, len(_WORDS) - 1)]
    own = (3, (*words.tolist(), 0), None)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(way)
        random.setstate(own)
        np.random.set_state(("MT19937", words, 0, 0, 0.0))  # noqa: NPY002
        try:
            yield draws
        finally:
            draws.used = random.getstate() != own or any(_of_numpy()[2:4])
            random.setstate(python)
            np.random.set_state(arrays)  # noqa: NPY002


def _of_numpy() -> Any:
    return np.random.get_state()  # noqa: NPY002


def freeze_by_chance(tracer: ChannelTracer, graphs: Sequence[fx.Graph]) -> None:
    """Keep the channels of what records of the same forward pass, drawn in several ways, pass on where they differ."""
    for one, other in combinations(graphs, 2):
        of_both = _numbered(one, other)
        for graph in (one, other):
            for node in graph.nodes:
                for arg in node.all_input_nodes:
                    if not _stays(node, arg, of_both):
                        for x in located_in(tracer.located[arg]):
                            tracer.freeze(x, node, REASON)
                        tracer.freeze_counts(node, [arg])


def _numbered(one: fx.Graph, other: fx.Graph) -> dict[fx.Node, str]:
    """The nodes of two records: a number for each that both have, as well as what it takes; else that of a gap."""
    nodes = [*one.nodes], [*other.nodes]
    first, second = ([(n.op, name_of(n), n.meta.get(LINE), _modules(n)) for n in part] for part in nodes)
    numbers: dict[fx.Node, str] = {}
    for what, *ends in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        parts = nodes[0][ends[0] : ends[1]], nodes[1][ends[2] : ends[3]]
        for part in parts:
            for place, node in enumerate(part, ends[0]):
                numbers[node] = f"{place}" if what == "equal" else f"gap {ends[0]}"
        for node, same in zip(*parts, strict=True) if what == "equal" else ():
            if _arguments(node, numbers) != _arguments(same, numbers):
                numbers[node] = numbers[same] = f"other {numbers[node]}"
    return numbers


def _modules(node: fx.Node) -> tuple[str, ...]:
    return tuple(name for name, _ in node.meta.get(CALLS, ()))


def _arguments(node: fx.Node, numbers: Mapping[fx.Node, str]) -> str:
    """What a node takes; of numbers that are no sizes or places nothing, since channels do not depend on them."""

    def shown(value: Any) -> Any:
        return numbers[value] if isinstance(value, fx.Node) else 0.0 if isinstance(value, float) else value

    return str(fx.node.map_aggregate((node.args, node.kwargs), shown))


def _stays(node: fx.Node, arg: fx.Node, numbers: Mapping[fx.Node, str]) -> bool:
    """Whether a node takes an argument whichever way the forward pass goes, or whenever it goes the one that has it."""
    taker, given = numbers[node], numbers[arg]
    return taker == given or (taker.isdigit() and not given.startswith("gap"))
