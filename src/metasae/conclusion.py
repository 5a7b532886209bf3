"""The end of a run: the measured arms compared, the figures and the report written. Needs no torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from metasae.comparison import compare, summary_table
from metasae.report import write_report
from metasae.verdict import verdict_lines

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# The narrowest that the names of the measures are folded to.
_NAMES = 16


def conclude(folder: str | Path, show: bool = True, baseline: str | None = None) -> dict:
    """Compares the measured arms of a run folder and writes compare.json, compare.md, figures and report.html.

    Returns what compare.json holds, with the run folder's path as `run` and the report's as `report`. Raises UserError when nothing
    is measured.
    """
    folder = Path(folder)
    comparison = compare(folder, baseline)
    report = write_report(folder, comparison)
    if show:
        from rich.console import Console

        console = Console()
        print_whole(summary_table(comparison), console)
        console.print("\n".join(verdict_lines(comparison)), highlight=False, markup=False)
        console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return {**comparison, "run": str(folder), "report": str(report)}


def print_whole(table: "Table", console: "Console") -> None:
    """Prints a table so that no number is cut: in a file or a pipe as wide as it is; on a terminal the first column folds."""
    from rich.measure import Measurement

    first = table.columns[0]
    whole = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
    names = max((len(str(cell)) for cell in [first.header, *first.cells]), default=0)
    first.no_wrap, first.overflow = False, "fold"
    least = whole - max(names - _NAMES, 0)
    before = console.width
    console.width = max(before, least) if console.is_terminal else whole
    console.print(table)
    console.width = before
