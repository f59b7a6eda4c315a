"""Results for people: a table on the screen and the same as Markdown, numbers and sentences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from norton.common.errors import InputError
from norton.common.files import write_whole
from norton.common.tables import Row


def print_table(rows: Sequence[Row], title: str = "") -> None:
    """Print rows of the same keys; numbers are aligned right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for key, value in rows[0].items():
        table.add_column(key, justify="left" if isinstance(value, str) and key == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*(format_cell(value) for value in row.values()))
    Console(width=None if Console().is_terminal else 140).print(table)


def write_table(path: str | Path, rows: Sequence[Row]) -> Path:
    """Write rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    lines += ["| " + " | ".join(format_cell(value) for value in row.values()) + " |" for row in rows]
    return write_whole(path, "\n".join(lines) + "\n")


def format_cell(value: Any) -> str:
    """Large counts in millions as papers print them, other floats with two decimals, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return str(value)


def millions(count: int) -> str:
    return f"{count / 1e6:.2f}M"


def labels(paths: Sequence[str]) -> list[str]:
    """A name per file: without its ending, or of its folder, or the path, the first of these that tells all apart.

    Every run writes a model.pt.  Raises InputError for a file that is given twice.
    """
    if len({str(Path(path).resolve()) for path in paths}) < len(paths):
        raise InputError(f"the same file is given twice: {', '.join(map(str, paths))}")
    for name in (lambda path: path.stem, lambda path: path.resolve().parent.name, str):
        names = [name(Path(path)) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def speed_sentence(name: str, macs_ratio: float, speedup: float) -> str:
    """What a network's fewer MACs brought; both numbers: how many times less than the dense network's."""
    if macs_ratio < 1:
        return f"{name}: {1 / macs_ratio:.2f} times more MACs, {speedup:.2f} times as fast"
    fewer = f"{name}: {macs_ratio:.2f} times fewer MACs"
    if speedup > 1:
        return f"{fewer}, {speedup:.2f} times as fast"
    return f"{fewer}, but not faster on this machine: {speedup:.2f} times as fast"
