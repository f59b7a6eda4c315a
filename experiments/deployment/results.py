"""What people see of the variants: a table, sentences, a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from norton.cli import pictures


def table_row(row: Mapping[str, Any], score: tuple[str, str]) -> dict[str, Any]:
    """score: what accuracy is called in the row, and in tables."""
    name, label = score
    shown = {"network": row["network"], "form": row["form"], label: row[name]}
    shown["file MB"] = row["file_bytes"] and row["file_bytes"] / 1e6
    for size, found in row["batches"].items():
        shown[f"ms, batch {size} (middle half)"] = found and time_text(found["ms"], *found["quartiles_ms"])
    records = [found for found in row["batches"].values() if found and found["speedup"]]
    shown["× dense"] = ", ".join(f"{found['speedup']:.2f}" for found in records) or None
    largest = row["batches"][max(row["batches"])]
    shown["peak MB"] = largest and largest["peak_bytes"] and largest["peak_bytes"] / 1e6
    return shown


def time_text(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} ({low:.2f} to {high:.2f})" if middle < 10 else f"{middle:.1f} ({low:.1f} to {high:.1f})"


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence per batch size on the fastest row, beside the fastest one of the dense network."""
    lines = []
    for size in rows[0]["batches"]:
        best: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if row["batches"][size] and milliseconds(row, size) < milliseconds(best.get(row["role"]), size):
                best[row["role"]] = row
        mine, dense = best["network"], best.get("dense")
        line = f"batch {size}: {mine['network']} is fastest as {mine['form']}, {milliseconds(mine, size):.2f} ms"
        if dense is not None:
            ratio = milliseconds(dense, size) / milliseconds(mine, size)
            line += f", {ratio:.2f} times as fast as the dense network at its best, {dense['form']}"
        lines.append(line)
    return lines


def milliseconds(row: Mapping[str, Any] | None, size: int) -> float:
    return row["batches"][size]["ms"] if row else float("inf")


def picture(path: Path, rows: Sequence[Mapping[str, Any]], title: str, score: tuple[str, str]) -> None:
    """Per batch size the times of all forms, dense beside compressed; below them the accuracies where there are any.

    score: as in `table_row`.
    """
    from matplotlib.figure import Figure

    name, label = score
    sizes, forms = list(rows[0]["batches"]), list(dict.fromkeys(row["form"] for row in rows))
    roles = dict.fromkeys(row["role"] for row in rows)
    accurate = any(row[name] is not None for row in rows)
    count = len(sizes) + accurate
    figure = Figure(figsize=(1.5 + 4.2 * count, 4.2), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    colours = dict(zip(roles, ["#8c8c8c", "#4c72b0"][-len(roles) :], strict=True))
    for axis, size in zip(axes, sizes, strict=False):
        for number, role in enumerate(roles):
            mine = [row for row in rows if row["role"] == role and row["batches"][size]]
            places = [forms.index(row["form"]) + 0.4 * (number - (len(roles) - 1) / 2) for row in mine]
            found = [row["batches"][size] for row in mine]
            spread = [[f["ms"] - f["quartiles_ms"][0] for f in found], [f["quartiles_ms"][1] - f["ms"] for f in found]]
            style = {"color": colours[role], "label": mine[0]["network"], "ecolor": "#222222", "capsize": 2}
            drawn = axis.bar(places, [f["ms"] for f in found], 0.38, yerr=spread, **style)
            axis.bar_label(drawn, fmt="%.3g", padding=2, fontsize=7)
        axis.set(title=f"batch {size}", ylabel="ms (bar: middle half)")
    if accurate:
        for role, colour in colours.items():
            mine = [row for row in rows if row["role"] == role and row[name] is not None]
            if not mine:
                continue
            places = [forms.index(row["form"]) for row in mine]
            axes[-1].plot(
                places, [row[name] for row in mine], color=colour, marker="o", linestyle="", label=mine[0]["network"]
            )
        axes[-1].set(title="accuracy", ylabel=label)
    for axis in axes:
        axis.set_xticks(range(len(forms)), forms, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
        axis.margins(y=0.15)
    axes[0].legend(fontsize=8)
    pictures.save_figure(path, figure, title)
