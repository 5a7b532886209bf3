"""A table for use without pandas: printed in a terminal, drawn in a notebook, read by column."""

import html
from collections.abc import Sequence
from typing import Any


class Table:
    """A table of values. columns: names. rows: the values of each row in the order of the columns, None for a missing
    one.
    """

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[Any]]):
        self.columns, self.rows = list(columns), [list(row) for row in rows]

    def __getitem__(self, column: str) -> list:
        """The values of one column. Raises KeyError for an unknown name."""
        if column not in self.columns:
            raise KeyError(f"no column '{column}', only {', '.join(self.columns)}")
        place = self.columns.index(column)
        return [row[place] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        cells = [self.columns, *([shown(value) for value in row] for row in self.rows)]
        widths = [max(len(row[place]) for row in cells) for place in range(len(self.columns))]
        lines = []
        for first, *others in cells:
            right = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *right]).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(shown(value))}</td>" for value in row) + "</tr>" for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """A value as text: three digits of a number, nothing for None."""
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
