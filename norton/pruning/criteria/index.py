"""The filters that a user names."""

import math
import re
from collections.abc import Sequence

from torch import Tensor

from norton.common.errors import InputError
from norton.pruning.criteria.kinds import CRITERIA, LayerContext, layer_score


@layer_score("index")
def index(context: LayerContext) -> Tensor:
    """(O,) -inf for the filters named, which go whatever the rates say; what rates ask beyond them goes by l2."""
    found = CRITERIA["l2"](context.filters).double().clone()
    found[list(context.named)] = -math.inf
    return found


def parse_filters(layer: str, text: str | int | Sequence[int | str], count: int) -> tuple[int, ...]:
    """The filters of a layer that `105, 8, 9, 11-13` names, sorted; a range includes both ends.

    count: filters of the layer.  Raises InputError for what cannot be read, an index out of range or given twice, a
    range backwards, and where no filter would be left.
    """
    if not isinstance(text, str | int | Sequence):
        raise InputError(f"{layer}: cannot read {text!r}; name filters as in '105, 8, 9, 11-13', 7 or [7, '11-13']")
    parts = text.split(",") if isinstance(text, str) else [text] if isinstance(text, int) else list(text)
    found: list[int] = []
    for part in map(str, parts):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match:
            raise InputError(f"{layer}: cannot read {part.strip()!r}; name filters as in 105, 8, 9, 11-13")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"{layer}: range {first}-{last} runs backwards; write {last}-{first}")
        if last >= count:
            raise InputError(f"{layer}: filter {last} is out of range; it has {count}, 0 to {count - 1}")
        found += range(first, last + 1)
    if not found:
        raise InputError(f"{layer}: no filters are named; name some as in 105, 8, 9, 11-13, or leave the layer out")
    twice = sorted({i for i in found if found.count(i) > 1})
    if twice:
        raise InputError(f"{layer}: filter {twice[0]} is given twice; name each once")
    if len(found) == count:
        raise InputError(f"{layer}: all {count} filters are named, and a layer needs at least one; leave one out")
    return tuple(sorted(found))
