"""Results that print as a short table, and as a table in a notebook."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Row = Mapping[str, Any]
MOST_ROWS = 20  # that are shown


class ShownAsTable:
    """A result whose `repr` is a title and a short table of its `rows`; a subclass gives both."""

    def title(self) -> str:
        raise NotImplementedError

    def rows(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def shown_rows(self) -> list[dict[str, Any]]:
        """The rows with the columns that are shown; by default all."""
        return self.rows()

    def __repr__(self) -> str:
        return text_table(self.shown_rows(), self.title())

    def _repr_html_(self) -> str:
        return html_table(self.shown_rows(), self.title())


def text_table(rows: Sequence[Row], title: str, most: int = MOST_ROWS) -> str:
    """A title, and rows of the same keys in aligned columns; of many rows the first, and how many more there are."""
    if not rows:
        return title
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows[:most])]
    columns = [_aligned(column) for column in zip(*cells, strict=True)]
    lines = ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]
    return "\n".join([title, *lines, *_left_out(rows, most)])


def html_table(rows: Sequence[Row], title: str, most: int = MOST_ROWS) -> str:
    """The same as an HTML table."""
    if not rows:
        return f"<p>{escape(title)}</p>"
    head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_cell(value))}</td>" for value in row.values()) + "</tr>" for row in rows[:most]
    )
    below = "".join(f"<p>{text}</p>" for text in _left_out(rows, most))
    return f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>{below}"


def _left_out(rows: Sequence[Row], most: int) -> list[str]:
    return [f"... {len(rows) - most} more"] if len(rows) > most else []


def _cell(value: Any) -> str:
    """Whole numbers by thousands, other numbers to three digits, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _aligned(column: Sequence[str]) -> list[str]:
    """A column, its name first, in one width; numbers stand to the right."""
    width, numeric = max(map(len, column)), all(cell[:1].isdigit() or cell[:1] == "-" for cell in column[1:])
    return [cell.rjust(width) if numeric else cell.ljust(width) for cell in column]
