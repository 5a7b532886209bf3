"""A preview of a sweep as a table for people."""

from rich import box
from rich.console import Console
from rich.table import Column, Table

from metasae.doctor.fit import Shortage
from metasae.doctor.table import duration


def print_preview(result: dict) -> None:
    """Prints a preview: its cells, then what there is to do in all and the hours, and the verdict last."""
    console = Console(highlight=False, emoji=False)
    console.print(_cells(result), _totals(result))
    console.print("\n".join(_lines(result)), markup=False, soft_wrap=True)


def _cells(result: dict) -> Table:
    right = {"justify": "right", "no_wrap": True}
    columns = ("cell", Column("SAEs", **right), Column("trained", **right), Column("time", **right))
    table = Table(*columns, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for cell in result["cells"]:
        added = str(cell["saes"]) if cell["saes"] else "shared"
        time = duration(cell["seconds"]) if cell["seconds"] != 0 else "-"
        table.add_row(cell["label"], added, str(cell["trained"] or "-"), time)
    return table


def _totals(result: dict) -> Table:
    seconds, workers = result["seconds"], result["workers"]
    threads = f"{result['threads']} thread{'s' * (result['threads'] > 1)}"
    on = threads if result["device"] == "cpu" else result["device"]
    beside = f"with {workers} workers, {on} each" if workers > 1 else f"with one worker, {on}"
    once = "once, before the workers start" if result["tokens_to_harvest"] else ""
    rows = [
        ("cells", f"{sum(cell['trials'] for cell in result['cells']):,}", result["title"]),
        ("SAEs to train", f"{result['saes_to_train']:,}", f"of {result['saes']:,}; {_seeds(result['seeds'])}"),
        ("tokens to harvest", f"{result['tokens_to_harvest']:,}", ""),
        ("harvest", duration(seconds["harvest"]), once),
        ("training", duration(seconds["train"]), "one SAE after another"),
        ("measuring", duration(seconds["measure"]), f"{result['saes_to_measure']:,} SAEs; rough"),
        ("in all", duration(seconds["whole"]), beside),
    ]
    table = Table(Column(no_wrap=True), Column(justify="right", no_wrap=True), Column(), box=None, show_header=False)
    for row in rows:
        table.add_row(*row)
    return table


def _seeds(seeds: list[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def _lines(result: dict) -> list[str]:
    lines = ["", *(f"Note: {note}." for note in result["notes"])]
    if result["fits"]:
        return [
            *lines,
            "Times are estimates from trials of a few seconds on this machine, as busy as it is now.",
            "They leave out the seconds to start and to write the tables. Nothing was written.",
        ]
    lines += [f"It cannot run: {problem}" for problem in result["problems"]]
    for short in map(str, (Shortage(**shortage) for shortage in result["shortages"])):
        lines.append(f"It does not fit. {short[0].upper()}{short[1:]}.")
    if result["shortages"]:
        lines.append("Fewer workers need less memory; `metasae doctor` says which values of the recipe to change.")
    return lines
