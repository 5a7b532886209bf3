"""sweep.md: the paper's table with intervals, measures of known features, and the comparison at equal FVU."""

from collections.abc import Sequence
from pathlib import Path

from metasae.compare.catalogue import TRUTH, change, is_established
from metasae.compare.tables import fill
from metasae.sweep.folder import DONE, FAILED, STOPPED
from metasae.sweep.plan import QUANTITIES

FIGURES = {"pareto": "Objectives and their front", "dose-response": "Change over the penalty's strength"}
STATES = {DONE: "done", STOPPED: "stopped early", FAILED: "failed"}
# The measures of the paper's table. L2 is left out, as it changes by the same percentage as FVU. OUTPUT: the first that
# the model has.
PAPER = ("cooccurrence.mean_abs_phi", "fidelity.fvu")
OUTPUT = ("fidelity.ce_delta", "fidelity.output_cosine_distance")


def columns(result: dict) -> list[str]:
    """The keys of the measures shown: the paper's, those of known features, and the objectives, if any cell has
    them.
    """
    known = {key for cell in result["cells"] for key in cell["differences"]}
    output = [key for key in OUTPUT if key in known][:1]
    return [key for key in dict.fromkeys([*PAPER, *output, *TRUTH, *result["objectives"]]) if key in known]


def by_kind(result: dict) -> bool:
    """Whether cells are known by their kind and the number of their row: each has a kind, and no kind has several k."""
    return not result["equal_fvu"] and all(cell["kind"] for cell in result["cells"])


def as_markdown(result: dict, drawn: Sequence[str] = ()) -> str:
    """The text of sweep.md. drawn: names of the figures that were drawn."""
    shown, states = columns(result), [cell["state"] for cell in result["cells"]]
    same_k = list(dict.fromkeys([*shown, "fidelity.l0"]))
    named = ["row", "kind"] if by_kind(result) else result["settings"]
    return fill(
        Path(__file__).with_name("sweep.md"),
        **result | {"settings": named, "subject": "each kind" if by_kind(result) else result["subject"]},
        counts=[f"{states.count(state)} {word}" for state, word in STATES.items() if state in states],
        labels=_labels(shown),
        rows=[_row(row, cell, named, shown) for row, cell in enumerate(result["cells"], 1)],
        figures={name: title for name, title in FIGURES.items() if name in drawn},
        **(_equal_fvu(result["equal_fvu"], same_k) if result["equal_fvu"] else {}),
    )


def _row(row: int, cell: dict, settings: list[str], shown: list[str]) -> list[str]:
    known = {**cell["setting"], "row": row, "kind": cell["kind"]}
    values = ["" if known.get(key) is None else known[key] for key in settings]
    changes = [_change(cell["differences"].get(key), key) for key in shown]
    return [*map(str, values), *changes, str(len(cell["seeds"])), _remark(cell)]


def _remark(cell: dict) -> str:
    if cell["state"] != DONE:
        return f"{cell['state']}: {cell['why']}".replace("|", "\\|")
    return "front, nearest to the ideal" if cell["best"] else "front" if cell["on_front"] else cell["why"]


def _equal_fvu(result: dict, same_k: list[str]) -> dict[str, list]:
    """The labels and rows of the two tables of kinds. same_k: the measures in the table at the same k."""
    target, read = result["target"], [key for key in same_k if key != "fidelity.fvu"]
    read_rows = []
    for kind, rows in result["kinds"].items():
        ks = [str(k) for k in result["k"][kind] if (kind, k) != (target["kind"], target["k"])]
        name = f"{kind}'s own curve: the error of interpolation" if kind == target["kind"] else kind
        read_rows.append([name, ", ".join(ks), *(_read_off(rows.get(key), key) for key in read)])
    same_k_rows = [
        [kind, k, *(_change(rows.get(key), key) for key in same_k)]
        for kind, by_k in result["equal_k"].items()
        for k, rows in by_k.items()
    ]
    labels = {"read_labels": _labels(read), "same_k_labels": _labels(same_k)}
    return {"read_rows": read_rows, "same_k_rows": same_k_rows, **labels}


def _read_off(entry: dict | None, key: str) -> str:
    """A difference at equal FVU as text, with the error of interpolation in the unit of the change."""
    if entry is None:
        return "-"
    if entry["difference"] is None:
        return "FVU not reached"
    error, relative = entry["interpolation_error"], QUANTITIES[key].relative
    base, unit = (abs(entry["b"]), "%") if relative else (1, " pp")
    reading = f" (interpolation ± {100 * error / base:.2g}{unit})" if error is not None and base else ""
    return f"{_change(entry, key)}{reading}, {entry['n_seeds']} seeds"


def _change(entry: dict | None, key: str) -> str:
    """A change as text, bold if it is clear after Holm's correction. Differences at equal FVU have no such
    correction.
    """
    text = change(QUANTITIES[key], entry) if entry else "-"
    return f"**{text}**" if entry and is_established(entry) else text


def _labels(keys: list[str]) -> list[str]:
    return [QUANTITIES[key].label.replace("|", "\\|") for key in keys]
