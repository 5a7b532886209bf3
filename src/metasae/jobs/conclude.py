"""The end of a run: what is worked out from all its arms together, the figures and the report.

Comparing what is measured needs no torch.
"""

import shlex
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from metasae import files
from metasae.arms.folder import RunFolder
from metasae.compare.compare import compare
from metasae.compare.tables import births_lines, source_lines, summary_table
from metasae.errors import UserError
from metasae.explore.pages import queries
from metasae.explore.store.schema import STORE
from metasae.progress.progress import Progress

# The narrowest that the names of the measures are folded to.
_NAMES = 16


def conclude(folder: str | Path, show: bool = True, baseline: str | None = None) -> dict:
    """Compares the measured arms of a run folder and writes compare.json, compare.md, figures and report.html.

    Returns what compare.json holds, with the run folder's path as `run` and the report's as `report`. Raises UserError
    when nothing is measured.
    """
    folder = Path(folder)
    comparison = compare(folder, baseline)
    # only now, as it brings matplotlib along
    from metasae.report.report import write_report

    report = write_report(folder, comparison, current_explorer(folder))
    result = {**comparison, "run": str(folder), "report": str(report)}
    if show:
        print_conclusion(result)
    return result


def across(folder: Path, progress: Progress, steering) -> bool:
    """Brings across.json, what takes two SAEs, up to date; whether there was anything to write.

    Parts of the same SAEs as before are kept. steering: as `Source.steering`.
    """
    from metasae.compare.across import measure_across, measured_arms

    path = folder / "across.json"
    before = files.read_json(path) if path.exists() else None
    results = measure_across(measured_arms(folder), RunFolder(folder).across(), progress, steering)
    if results != before:
        files.write_json(path, results)
    return results != before


def store(folder: Path, progress: Progress) -> bool:
    """Brings the explorer's store up to date, from which the report's windows are read too; whether there was anything
    to write.
    """
    from metasae.explore.store.build import build

    path = folder / STORE
    before = path.stat().st_mtime_ns if path.is_file() else None
    build(folder, progress)
    return path.stat().st_mtime_ns != before


def current_explorer(folder: Path) -> queries.Explorer | None:
    """The run's explorer; None where it has no store, or one of other SAEs (`metasae explore` builds it anew)."""
    try:
        explorer = queries.Explorer(folder)
    except UserError:
        return None
    return explorer if explorer.is_current() else None


def print_conclusion(result: dict) -> None:
    """The summary table, the verdict and the report's place on stdout. result: as `conclude` returns it."""
    console = Console(emoji=False)
    # its title is the folder's name, as in compare.json
    print_whole(summary_table({**result, "run": Path(result["run"]).resolve().name}), console)
    verdict = [line["text"] for line in result["verdict"]]
    for line in [*verdict, *births_lines(result), *source_lines(result["conditions"])]:
        console.print(line, highlight=False, markup=False)
    print(f"Report: {result['report']}")


def print_next_steps(folder: Path, comparison: dict) -> None:
    """Where a run's results are, and what can be done with them, on stdout.

    comparison: as of compare.json. A model that predicts tokens can be steered.
    """
    last, arm = list(comparison["arms"].items())[-1]
    causal = any("fidelity.ce_clean" in entry["means"] for entry in comparison["arms"].values())
    words = ["metasae", "steer", str(folder / "arms" / f"{last}-s{arm['seeds'][0]}")]
    for line in (
        f"Everything else is in {folder}: the SAEs and their measures in arms, the comparison in compare.md.",
        f"Look at single latents: {shlex.join(['metasae', 'explore', str(folder)])}",
        *([f'Steer with one: {shlex.join(words)} --latent LATENT=VALUE --prompt "..."'] if causal else []),
        "Your own model and text (docs/text.md): metasae recipes demo > mine.toml, change it,",
        "then metasae run mine.toml",
    ):
        print(line)


def print_whole(table: Table, console: Console) -> None:
    """Prints a table so that no number is cut.

    In a file or a pipe it is as wide as it needs; on a terminal the names in its first column are folded, at most to
    _NAMES.
    """
    first, before = table.columns[0], console.width
    whole = Measurement.get(console, console.options.update(max_width=100_000), table).maximum
    names = max(len(str(cell)) for cell in [first.header, *first.cells])
    first.no_wrap, first.overflow = False, "fold"
    console.width = max(before, whole - max(names - _NAMES, 0)) if console.is_terminal else whole
    console.print(table)
    console.width = before
