"""Networks as rows of tables: costs, layers, widths, and what was left whole."""

from collections.abc import Mapping

from omegaconf import DictConfig
from torch import nn

from norton.cli.opening import dense_form
from norton.cli.settings import plain, pruning_arguments
from norton.cli.tables import Row, millions
from norton.graph import wiring_of
from norton.graph.layers import is_decomposed, width
from norton.graph.wiring import OUTPUT
from norton.measure.counting import Complexity, complexity, percent_removed
from norton.pruning import spared


def cost_row(cost: Complexity, dense: Complexity) -> Row:
    """MACs and parameters as columns of a table, with what was removed against the dense network."""
    return {
        "MACs": millions(cost.macs),
        "MACs removed %": percent_removed(cost.macs, dense.macs),
        "params": millions(cost.params),
        "params removed %": percent_removed(cost.params, dense.params),
    }


def dense_cost(
    net: nn.Module, convention: str = "norton", input_size: tuple[int, int, int] | None = None
) -> Complexity:
    """The cost of the dense network that `net` came from."""
    return complexity(dense_form(net), input_size or net.input_size, convention=convention)


def macs_panel(net: nn.Module, cost: Complexity) -> dict[str, dict[str, int]]:
    """A panel for `layer_picture`: the MACs of convolutions and linear layers; the others are many and small."""
    layers = {name: net.get_submodule(name) for name in cost.by_layer}
    shown = [name for name, layer in layers.items() if is_decomposed(layer) or isinstance(layer, nn.Conv2d | nn.Linear)]
    return {"MACs": {name: cost.by_layer[name].macs for name in shown}}


def rank_text(rank: int | tuple[int, ...]) -> int | str:
    """A rank as a cell of a table shows it: several as `16, 32`."""
    return rank if isinstance(rank, int) else ", ".join(map(str, rank))


def layer_rows(
    small: nn.Module,
    before: Complexity,
    after: Complexity,
    errors: Mapping[str, float],
    outputs: Mapping[str, float] | None = None,
) -> list[Row]:
    """A row per decomposed layer of a network: rank, NMSE, MACs, and the errors of outputs where they are known.

    before, after: the cost of the network before it was decomposed, and now.
    """
    rows: list[Row] = []
    for name, error in errors.items():
        layer = small.get_submodule(name)
        rows.append(
            {
                "layer": name,
                "filters": width(layer),
                "rank": rank_text(layer.rank),
                "NMSE": f"{error:.4f}",
                **({"output error": f"{outputs[name]:.4f}" if name in outputs else "-"} if outputs else {}),
                "MACs before": f"{before.by_layer[name].macs:,}",
                "MACs after": f"{after.by_layer[name].macs:,}",
            }
        )
    return rows


def width_rows(net: nn.Module, small: nn.Module) -> list[Row]:
    """A row per channel axis: its layers and the filters before and after."""
    before = wiring_of(net)
    rows: list[Row] = []
    for axis, writers in before.writers.items():
        each = before.filters(axis)[0]  # of a group, that goes as a whole
        more = f" (+{len(writers) - 1} tied)" if len(writers) > 1 else ""
        layer = small.get_submodule(writers[0])
        kind = f"rank {rank_text(layer.rank)}" if is_decomposed(layer) else "dense"
        rows.append(
            {"layer": writers[0] + more, "kind": kind, "before": each * before.width(axis), "after": width(layer)}
        )
    return rows


def left_whole(net: nn.Module, cfg: DictConfig) -> dict[str, str]:
    """First writer of each channel axis that stays whole → why: it cannot be cut, or the settings spare it."""
    wiring = wiring_of(net)
    options = pruning_arguments(cfg).options
    return wiring.left_whole | spared(net, wiring, plain(cfg.compress_rate), options=options)


def whole_rows(left: Mapping[str, str]) -> list[Row]:
    """A row per kind of reason why filters stay, with layers that it is about; the network's output is left out."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for layer, reason in left.items():
        if reason != OUTPUT:
            kinds.setdefault(reason.split(": ")[-1], []).append((layer, reason))
    rows: list[Row] = []
    for found in kinds.values():
        layers, more = [layer for layer, _ in found[:2]], len(found) - 2
        rows.append({"left whole": ", ".join(layers) + f" and {more} more" * (more > 0), "why": found[0][1]})
    return rows
