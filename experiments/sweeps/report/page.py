"""The report of a sweep as one HTML file, with plotly inside."""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from experiments.sweeps.report.charts import (
    DENSE,
    HeatMap,
    Panel,
    Symbol,
    accuracy_range,
    budget_title,
    heat_title,
)
from experiments.sweeps.report.data import Row, cells, columns, dense_networks, score_label, uniform
from norton.cli import pictures

TEMPLATE = Path(__file__).with_name("report.html")


def page(
    about: Mapping[str, Any],
    rows: Sequence[Row],
    means: Sequence[Row],
    panels: Sequence[Panel],
    legend: Mapping[str, tuple[str, Symbol]],
    maps: Mapping[str | None, HeatMap],
    slices: Mapping[float, Sequence[Row]],
    tolerance: float,
) -> str:
    """The whole page.  about: title, state, commands and failures of the sweep, in words."""
    fronts = {f"pareto_{panel.cost}": pareto_figure(panel) for panel in panels}
    score = score_label(rows)
    heat = {
        f"heat_{number}": heat_figure(heat_title(criterion, score), found)
        for number, (criterion, found) in enumerate(maps.items())
    }
    budgets = {f"budget_{budget:g}": budget_figure(budget, found, tolerance) for budget, found in slices.items()}
    table = uniform([columns(row) for row in rows])
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text()).render(
        **about,
        denses=[(dense, score_label([dense]).removesuffix(" %")) for dense in dense_networks(rows)],
        trained=any(row["trained"] for row in rows),
        machines=sorted({row["machine"] for row in rows}),
        legend={word: (colour, symbol.text) for word, (colour, symbol) in legend.items()},
        sections={
            "Accuracy against cost": (
                "The dashed line is the Pareto front; the star is the dense network, which is one of its candidates. "
                "A click on a word hides what it stands for.",
                fronts,
            ),
            "Rank against ratio": ("Accuracy over rank and rates, a map per criterion.", heat),
            "The same budget, spent differently": ("Configurations that remove about equally many MACs.", budgets),
        },
        plots={key: json.loads(figure.to_json()) for key, figure in (fronts | heat | budgets).items()},
        columns=list(table[0]),
        table=[(line, row["command"], row["config"]) for line, row in zip(table, rows, strict=True)],
        means=uniform([cells(mean) for mean in means]),
        plotly=packed(get_plotlyjs()),
    )


def packed(script: str) -> str:
    """A script as the page carries it, a third of its size: gzip as base64, which browsers unpack themselves."""
    return base64.b64encode(gzip.compress(script.encode(), mtime=0)).decode()


def pareto_figure(panel: Panel) -> go.Figure:
    """Accuracy against a cost.  The page has one legend for all; each trace carries its words of it as `meta`."""
    figure = go.Figure()
    if panel.paper:
        xs, ys, names = zip(*panel.paper, strict=True)
        figure.add_scatter(
            x=xs,
            y=ys,
            text=names,
            mode="markers",
            marker={"color": "#c8c8c8", "size": 6},
            hovertemplate="%{text}: %{y:.2f}%<extra>paper</extra>",
        )
    for series in panel.series:
        means = series.means
        figure.add_scatter(
            x=[panel.x(mean) for mean in means],
            y=[mean["score"] for mean in means],
            error_y={"array": [mean["spread"] for mean in means], "visible": any(mean["seeds"] > 1 for mean in means)},
            text=[mean["name"] for mean in means],
            mode="markers",
            marker={"color": series.colour, "symbol": series.symbol.plotly, "size": 9},
            hovertemplate="%{text}<br>%{y:.2f}% at %{x:.3g}<extra></extra>",
            meta=list(series.words),
        )
    xs, ys = zip(*panel.front, strict=True)
    line = {"dash": "dash", "color": "#8c8c8c", "width": 1, "shape": "hv"}
    figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip")
    xs, ys = zip(*panel.denses, strict=True)
    marker = {"symbol": DENSE.plotly, "color": "black", "size": 13}
    figure.add_scatter(x=xs, y=ys, mode="markers", marker=marker, name="dense", meta=["dense"])
    return _layout(figure, xaxis_title=panel.label, yaxis_title=panel.score, showlegend=False)


def heat_figure(title: str, found: HeatMap) -> go.Figure:
    figure = go.Figure(
        go.Heatmap(
            x=[str(rank) for rank in found.ranks],
            y=found.rates,
            z=found.scores,
            text=[["" if value is None else f"{value:.1f}" for value in line] for line in found.scores],
            texttemplate="%{text}",
            colorscale="Viridis",
            colorbar={"thickness": 12},
            hovertemplate="rank %{x}, %{y}: %{z:.2f}%<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    figure.update_xaxes(type="category")
    return _layout(figure, title=title, xaxis_title="rank", height=220 + 32 * len(found.rates))


def budget_figure(budget: float, found: Sequence[Row], tolerance: float) -> go.Figure:
    low, high = accuracy_range(found)
    points = go.Scatter(
        x=[mean["score"] for mean in found],
        y=[mean["name"] for mean in found],
        error_x={"array": [mean["spread"] for mean in found], "visible": any(mean["seeds"] > 1 for mean in found)},
        mode="markers+text",
        marker={"color": pictures.COLOURS[0], "size": 9},
        text=[f"{mean['score']:.2f}" for mean in found],
        textposition="top center",
        hovertemplate="%{y}: %{x:.2f}%<extra></extra>",
    )
    figure = go.Figure(points)
    figure.update_yaxes(range=[len(found) - 0.5, -0.8], automargin=True)
    figure.update_xaxes(range=[low, high])
    return _layout(
        figure, title=budget_title(budget, tolerance), xaxis_title=score_label(found), height=170 + 35 * len(found)
    )


def _layout(figure: go.Figure, height: int = 400, **layout: Any) -> go.Figure:
    small = {"l": 50, "r": 15, "t": 40 if "title" in layout else 15, "b": 45}
    return figure.update_layout(template="plotly_white", margin=small, height=height, **layout)
