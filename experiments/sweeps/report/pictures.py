"""The charts of a sweep as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.sweeps.report.charts import DENSE, HeatMap, Panel, Symbol, accuracy_range, budget_title, heat_title
from experiments.sweeps.report.data import Row, score_label
from norton.cli import pictures


def pareto_picture(path: Path, panels: Sequence[Panel], words: Mapping[str, tuple[str, Symbol]], title: str) -> None:
    """Accuracy against MACs, parameters and latency, with the Pareto front of each; words: the legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(4.8 * len(panels), 4.6), layout="constrained")
    published, front = {"color": "#c8c8c8", "marker": "o", "markersize": 4}, {"color": "#8c8c8c", "linestyle": "--"}
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for x, y, _ in panel.paper:
            axis.plot(x, y, **published)
        for series in panel.series:
            style = {"color": series.colour, "marker": series.symbol.matplotlib, "markersize": 6}
            for mean in series.means:
                axis.errorbar(panel.x(mean), mean["score"], yerr=mean["spread"] or None, capsize=2, zorder=3, **style)
        axis.step(*zip(*panel.front, strict=True), where="post", linewidth=1, **front)
        for x, y in panel.denses:
            axis.plot(x, y, marker=DENSE.matplotlib, color="black", markersize=11)
        axis.set(xlabel=panel.label, ylabel=panel.score)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], linestyle="", label=word, color=colour, marker=symbol.matplotlib)
        for word, (colour, symbol) in words.items()
    ]
    handles.append(Line2D([], [], linewidth=1, label="front", **front))
    if any(panel.paper for panel in panels):
        handles.append(Line2D([], [], linestyle="", label="published", **published))
    widest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, int(figure.get_figwidth() / (0.065 * widest + 0.5)))  # in inches, at this size of letters
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8)
    pictures.save_figure(path, figure, title)


def heat_picture(path: Path, maps: Mapping[str | None, HeatMap], title: str, score: str) -> None:
    """The score, called `score`, over rank and rates, a map per criterion."""
    from matplotlib.figure import Figure

    ranks, rates, _ = next(iter(maps.values()))
    size = (max(4.5, 2.2 + 0.75 * len(ranks)) * len(maps), 1.8 + 0.45 * len(rates))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    for axis, (criterion, (ranks, rates, values)) in zip(axes, maps.items(), strict=True):
        table = [[float("nan") if value is None else value for value in line] for line in values]
        image = axis.imshow(table, aspect="auto", cmap="viridis")
        axis.set_xticks(range(len(ranks)), ranks)
        axis.set_yticks(range(len(rates)), rates, fontsize=7)
        axis.set(xlabel="rank", title=heat_title(criterion, score))
        low, high = image.get_clim()
        for y, x in ((y, x) for y in range(len(rates)) for x in range(len(ranks)) if values[y][x] is not None):
            colour = "black" if values[y][x] > (low + high) / 2 else "white"
            axis.text(x, y, f"{values[y][x]:.1f}", ha="center", va="center", fontsize=8, color=colour)
    pictures.save_figure(path, figure, title)


def budget_picture(path: Path, slices: Mapping[float, Sequence[Row]], tolerance: float, title: str) -> None:
    """A panel per budget: the accuracies of the configurations that spend it."""
    from matplotlib.figure import Figure

    tallest = max(len(found) for found in slices.values())
    figure = Figure(figsize=(7, 1.2 + sum(0.7 + 0.3 * len(found) for found in slices.values())), layout="constrained")
    heights = [1 + len(found) for found in slices.values()]
    axes = figure.subplots(len(slices), 1, squeeze=False, height_ratios=heights)[:, 0]
    low, high = accuracy_range([mean for found in slices.values() for mean in found])
    for axis, (budget, found) in zip(axes, slices.items(), strict=True):
        names = [mean["name"] for mean in found]
        scores = [mean["score"] for mean in found]
        spreads = [mean["spread"] for mean in found] if any(mean["seeds"] > 1 for mean in found) else None
        axis.errorbar(scores, names, xerr=spreads, fmt="o", color=pictures.COLOURS[0], capsize=3)
        for name, score in zip(names, scores, strict=True):
            offset = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
            axis.annotate(f"{score:.2f}", (score, name), fontsize=7, **offset)
        axis.set_ylim(len(found) - 0.5, -0.8)
        axis.grid(axis="y", linewidth=0.3)
        axis.tick_params(labelsize=7 if tallest < 20 else 5)
        axis.set(xlim=(low, high), title=budget_title(budget, tolerance))
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(score_label(mean for found in slices.values() for mean in found))
    pictures.save_figure(path, figure, title)
