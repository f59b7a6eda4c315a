"""Results for people: bar charts, lines and scatter plots."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from norton.common.files import write_whole

COLOURS = ["#4c72b0", "#dd8452", "#c44e52", "#55a868", "#8172b3", "#937860", "#da8bc3", "#8c8c8c"]
_SERIES = [
    {"c": "#8c8c8c", "marker": "o", "s": 18},
    {"c": "#222222", "marker": "s", "s": 24},
    {"c": "#dd8452", "marker": "D", "s": 28},
    {"c": "#4c72b0", "marker": "*", "s": 90},
]


def bar_picture(path: str | Path, panels: Mapping[str, Mapping[str, float]], title: str) -> Path:
    """A row of bar charts: panel title → bar label → value."""
    figure, axes = _figure(len(panels), 3.1 * len(panels), 3.4)
    for axis, (name, bars) in zip(axes, panels.items(), strict=True):
        drawn = axis.bar(list(bars), list(bars.values()), color=COLOURS[: len(bars)], width=0.7)
        axis.bar_label(drawn, fmt=lambda v: f"{v:.4g}" if v < 100 else f"{v:.0f}", padding=2, fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.tick_params(axis="x", labelrotation=30, labelsize=8)
        axis.margins(y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(path, figure, title)


def layer_picture(
    path: str | Path,
    panels: Mapping[str, Mapping[str, float]],
    title: str,
    before: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """One panel below the other, each with a bar per layer; before: of a panel, outlines of what it was before."""
    count = max(len(bars) for bars in panels.values())
    figure, axes = _figure(1, max(6.0, 0.22 * count), 2.6 * len(panels), rows=len(panels))
    for axis, (name, bars) in zip(axes, panels.items(), strict=True):
        axis.bar(list(bars), list(bars.values()), color=COLOURS[0], label="after")
        if earlier := (before or {}).get(name):  # in front, for what became more
            outlines = {"facecolor": "none", "edgecolor": "#222222", "linewidth": 0.8}
            axis.bar(list(bars), [earlier[layer] for layer in bars], label="before", **outlines)
            axis.legend(fontsize=8, ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
        axis.set_ylabel(name, fontsize=9)
        axis.tick_params(axis="x", labelrotation=90, labelsize=6)
        axis.margins(x=0.01)
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(path, figure, title)


def series_picture(
    path: str | Path, panels: Mapping[str, Mapping[str, Sequence[tuple]]], title: str, *, x: str, y: str
) -> Path:
    """Panels side by side, each with lines: panel title → line label → points (x, y, error bar)."""
    figure, axes = _figure(len(panels), 4.6 * len(panels), 3.6)
    for axis, (name, lines) in zip(axes, panels.items(), strict=True):
        for colour, (label, points) in zip(COLOURS, lines.items(), strict=False):
            xs, ys, errors = zip(*points, strict=True)
            spread = errors if any(errors) else None
            axis.errorbar(xs, ys, yerr=spread, label=label, color=colour, marker="o", capsize=3)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel(x, fontsize=9)
        axis.set_ylabel(y, fontsize=9)
        if all(isinstance(point[0], int) for points in lines.values() for point in points):
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return save_figure(path, figure, title)


def curve_picture(
    path: str | Path, epochs: Sequence[Mapping[str, float]], scores: Mapping[str, str], title: str
) -> Path:
    """A training: its scores and its loss over the epochs.

    epochs: as `norton.training.history` writes them.  scores: name → how it is called; drawn where it was logged.
    """
    lines = {"fit": "training images", "val": "validation images"}
    panels = {}
    for name, called in {**scores, "loss": "loss"}.items():
        scale = 1 if name == "loss" else 100
        drawn = {
            label: [(row["epoch"], scale * row[f"{split}/{name}"], 0) for row in epochs if f"{split}/{name}" in row]
            for split, label in lines.items()
        }
        if any(drawn.values()):
            panels[called] = {label: points for label, points in drawn.items() if points}
    return series_picture(path, panels, title, x="epoch", y="")


def scatter_picture(
    path: str | Path, series: Mapping[str, Mapping[str, tuple]], title: str, accuracy: str = "top-1 %"
) -> Path:
    """Accuracy against MACs, and against parameters: series → label → (MACs, params, accuracy), None where unknown.

    What follows a `#` in a label only tells points apart.
    """
    figure, axes = _figure(2, 12, 5)
    for axis, position, name in zip(axes, (0, 1), ("MACs", "parameters"), strict=True):
        for (label, points), style in zip(series.items(), _SERIES, strict=True):
            known = {text: point for text, point in points.items() if None not in (point[position], point[2])}
            if known:
                xs, ys = zip(*((point[position] / 1e6, point[2]) for point in known.values()), strict=True)
                axis.scatter(xs, ys, label=label, **style)
            for text, point in known.items():
                place = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 6, "color": style["c"]}
                axis.annotate(text.split("#")[0], (point[position] / 1e6, point[2]), **place)
        _scale_by_range(axis)
        axis.set_xlabel(f"{name} (millions)", fontsize=9)
        axis.set_ylabel(accuracy, fontsize=9)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=len(series))
    return save_figure(path, figure, title)


def _scale_by_range(axis: Any) -> None:
    """A logarithmic x axis where values differ much, with ticks that can be read; room for the labels of points."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.dataLim.intervalx
    axis.margins(x=0.12)
    if high > 3 * low:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.set_major_formatter("{x:g}")


def _figure(columns: int, width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # without pyplot there is no global state, and no backend to choose

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False).flatten()


def save_figure(path: str | Path, figure: Any, title: str) -> Path:
    figure.suptitle(title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return write_whole(path, buffer.getvalue())
