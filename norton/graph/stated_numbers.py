"""Numbers by which modules say how wide they are, and that no forward pass needs: `in_channels`, `dim`, `groups`.

Other methods go by them, such as those that fuse the branches of re-parametrisable blocks, so that they follow when
channels are cut.  A number follows the channels that its name can mean, as many as it says, where these are the same
ones wherever they are met.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from torch import fx

from norton.graph.axes import Channels
from norton.graph.channels import ChannelTracer
from norton.graph.deciding import CALLS
from norton.graph.layers import groups_of, is_leaf
from norton.graph.wiring import Wiring

_WHAT = "(channels?|chs?|planes|dims?|features|filters|width|c)"
_READ = re.compile(f"(in|input)_?{_WHAT}|(c|dim|channels)_?in|inp|c1")
_GIVEN = re.compile(f"(out|output)_?{_WHAT}|(c|dim|channels)_?out|oup|c2")
_ANY = re.compile(f"(num|n|hidden|mid|embed|inner)?_?{_WHAT}_?")
_GROUPS = re.compile("(num_|n_)?groups")


def stated_numbers(tracer: ChannelTracer, graphs: Sequence[fx.Graph]) -> dict[str, Channels]:
    """Name of a number that a module holds → the channels that it counts, for those that no operation takes."""
    wiring, found = tracer.wiring, {}
    read, given = _passed(tracer, graphs)
    for path, module in tracer.net.named_modules():
        if not path or is_leaf(module) or type(module).__module__.startswith("torch.nn"):
            continue
        for key, value in vars(module).items():
            name = f"{path}.{key}"
            if type(value) is not int or value < 2 or name in wiring.sizes:
                continue
            fitting = [x for x in _meant(wiring, path, key, read, given) if len(x) == value]
            if len({(wiring.axis_at(x).tobytes(), wiring.unit_at(x).tobytes()) for x in fitting}) == 1:
                found[name] = fitting[0]
    return found


def _meant(
    wiring: Wiring, path: str, key: str, read: dict[str, list[Channels]], given: dict[str, list[Channels]]
) -> Iterable[Channels]:
    """The channels that a number of that name can be about."""
    if _GROUPS.fullmatch(key):
        return [*_groups_in(wiring, path)] or read.get(path, [])  # as many as channels, where there is none
    if _READ.fullmatch(key):
        return read.get(path, [])
    if _GIVEN.fullmatch(key):
        return given.get(path, [])
    if not _ANY.fullmatch(key):
        return []
    inside = [x for name, x in [*wiring.reads, *wiring.passes, *wiring.written_ones()] if name.startswith(f"{path}.")]
    return [*read.get(path, []), *given.get(path, []), *inside]


def _groups_in(wiring: Wiring, path: str) -> Iterator[Channels]:
    """A channel of each group, of the convolutions inside of a module of which whole groups go."""
    reading = {name for name, _ in wiring.reads}
    for name, x in wiring.written_ones():
        groups = groups_of(wiring.layer_of(name)) if name.startswith(f"{path}.") else 1
        if groups > 1 and name not in reading:
            yield x.reshape(groups, -1)[:, 0]


def _passed(
    tracer: ChannelTracer, graphs: Sequence[fx.Graph]
) -> tuple[dict[str, list[Channels]], dict[str, list[Channels]]]:
    """Module → the channels of the tensors that come into its calls, and of those that come out."""
    read: dict[str, list[Channels]] = {}
    given: dict[str, list[Channels]] = {}
    for graph in graphs:
        for node in graph.nodes:
            for arg in node.all_input_nodes:
                x = tracer.at(arg)
                if x is None or len(x.dims) != 1:
                    continue
                made, taken = (dict(one.meta.get(CALLS, ())) for one in (arg, node))
                channels = x.ids.flatten().numpy()
                for found, calls, others in ((read, taken, made), (given, made, taken)):
                    for name, call in calls.items():
                        if others.get(name) != call:
                            found.setdefault(name, []).append(channels)
    return read, given


def drop_read_(stated: dict[str, Channels], node: fx.Node) -> None:
    """Without the numbers of the modules whose forward pass runs at a node, or without all."""
    running = {name for name, _ in node.meta.get(CALLS, ())}
    own = [name for name in stated if name.rpartition(".")[0] in running]
    for name in own or list(stated):
        del stated[name]
