"""The end of a run: measures that take two SAEs, the comparison, the explorer's store, the figures and the report.

Comparing measured arms needs no torch.
"""

import shlex
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from metasae import files
from metasae.arms.folder import RunFolder
from metasae.compare.compare import compare
from metasae.compare.tables import source_lines, summary_table
from metasae.errors import UserError
from metasae.explore.pages import queries
from metasae.explore.store.schema import STORE
from metasae.progress.progress import Progress

# The least width of the column of names when it is folded, in characters.
_NAMES = 16


def conclude(folder: str | Path, show: bool = True, baseline: str | None = None) -> dict:
    """Compares the measured arms of a run folder and writes compare.json, compare.md, figures and report.html.

    Returns what compare.json holds, with the run folder's path as `run` and the report's as `report`. Raises UserError
    if nothing is measured.
    """
    folder = Path(folder)
    comparison = compare(folder, baseline)
    # imported late, as it imports matplotlib
    from metasae.report.report import write_report

    report = write_report(folder, comparison, current_explorer(folder))
    result = {**comparison, "run": str(folder), "report": str(report)}
    if show:
        print_conclusion(result)
    return result


def across(folder: Path, progress: Progress, steering) -> bool:
    """Updates across.json, the measures that take two SAEs; returns whether it changed.

    Parts between the same SAEs as before are kept. steering: as `Source.steering`.
    """
    from metasae.compare.across import measure_across, measured_arms

    path = folder / "across.json"
    before = files.read_json(path) if path.exists() else None
    results = measure_across(measured_arms(folder), RunFolder(folder).across(), progress, steering)
    if results != before:
        files.write_json(path, results)
    return results != before


def store(folder: Path, progress: Progress) -> bool:
    """Updates the explorer's store, which the report's windows are read from too; returns whether it changed."""
    from metasae.explore.store.build import build

    path = folder / STORE
    before = path.stat().st_mtime_ns if path.is_file() else None
    build(folder, progress)
    return path.stat().st_mtime_ns != before


def current_explorer(folder: Path) -> queries.Explorer | None:
    """The run's explorer; None if it has no store, or a store of other SAEs (`metasae explore` builds it again)."""
    try:
        explorer = queries.Explorer(folder)
    except UserError:
        return None
    return explorer if explorer.is_current() else None


def print_conclusion(result: dict) -> None:
    """Prints the summary table, the verdict and the report's path on stdout. result: as `conclude` returns it."""
    console = Console(emoji=False)
    # the title is the folder's name, as in compare.json
    print_whole(summary_table({**result, "run": Path(result["run"]).resolve().name}), console)
    verdict = [line["text"] for line in result["verdict"]]
    for line in [*verdict, *source_lines(result["conditions"])]:
        console.print(line, highlight=False, markup=False)
    print(f"Report: {result['report']}")


def print_next_steps(folder: Path, comparison: dict) -> None:
    """Prints on stdout where a run's results are and which commands can be used next.

    comparison: as in compare.json. Steering is named if the model predicts tokens.
    """
    last, arm = list(comparison["arms"].items())[-1]
    causal = any("fidelity.ce_clean" in entry["means"] for entry in comparison["arms"].values())
    words = ["metasae", "steer", str(folder / "arms" / f"{last}-s{arm['seeds'][0]}")]
    for line in (
        f"Everything else is in {folder}: the SAEs and their measures in arms, the comparison in compare.md.",
        f"Look at single latents: {shlex.join(['metasae', 'explore', str(folder)])}",
        *([f'Steer with one: {shlex.join(words)} --latent LATENT=VALUE --prompt "..."'] if causal else []),
        "For your own model and text (docs/text.md): metasae recipes demo > mine.toml, edit it,",
        "then metasae run mine.toml",
    ):
        print(line)


def print_whole(table: Table, console: Console) -> None:
    """Prints a table without cutting any number.

    In a file or a pipe it is as wide as needed. On a terminal the names in its first column are folded, to no less than
    _NAMES characters.
    """
    first, before = table.columns[0], console.width
    whole = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
    names = max(len(str(cell)) for cell in [first.header, *first.cells])
    first.no_wrap, first.overflow = False, "fold"
    console.width = max(before, whole - max(names - _NAMES, 0)) if console.is_terminal else whole
    console.print(table)
    console.width = before
