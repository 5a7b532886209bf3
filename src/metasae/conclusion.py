"""The end of a run: the measured arms compared, the figures and the report written. Needs no torch."""

from pathlib import Path

from metasae.comparison import compare, summary_table
from metasae.report import write_report


def conclude(folder: str | Path, show: bool = True, baseline: str | None = None) -> dict:
    """Compares the measured arms of a run folder and writes compare.json, compare.md, figures and report.html.

    Returns what compare.json holds with the run folder's and the report's path. Raises UserError when nothing is measured.
    """
    folder = Path(folder)
    comparison = compare(folder, baseline)
    report = write_report(folder)
    if show:
        from rich.console import Console

        console = Console()
        console.print(summary_table(comparison))
        console.print(comparison["verdict"], highlight=False)
        console.print(f"Report: {report}", highlight=False, soft_wrap=True)
    return {"run": str(folder), "report": str(report), **comparison}
