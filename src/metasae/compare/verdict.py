"""The verdict on a comparison: lines in plain words, whichever way the numbers point."""

from dataclasses import dataclass
from typing import Literal

from metasae.compare.catalogue import CATALOGUE, WHY_NOT_PHI_ALONE, Pair, Quantity, by_pair, change, reading, towards
from metasae.intervals.statistics import is_clear, leaves_out_zero

# A main measure and its difference between the two arms of a pair.
Row = tuple[Quantity, dict]


@dataclass(frozen=True)
class Line:
    """A sentence and what it is for.

    kind: what was judged (setting), what follows for a pair of arms (conclusion), what that rests on (evidence), or how
    not to read the numbers (caution).
    """

    kind: Literal["setting", "conclusion", "evidence", "caution"]
    text: str

    def __str__(self) -> str:
        """As it is printed: evidence is an item of a list below its conclusion."""
        return f"- {self.text}" if self.kind == "evidence" else self.text


def verdict_lines(comparison: dict) -> list[Line]:
    """comparison: as `metasae.compare.compare.compare` makes it, with or without its verdict."""
    setting = Line("setting", f"Judged on {comparison['conditions']['n_tokens']:,} held-out tokens.")
    if not comparison["pairs"]:
        arms = ", ".join(comparison["arms"])
        return [
            setting,
            Line(
                "conclusion",
                f"Only {arms} was measured, and a difference needs solo and another arm: "
                "there is nothing to compare yet.",
            ),
        ]
    lines = [setting]
    for pair, entries in by_pair(comparison["pairs"]).items():
        is_control = pair == Pair("control", "solo")
        lines += [_of_control(entries)] if is_control else _of_pair(pair, entries, comparison)
    return [*lines, Line("caution", WHY_NOT_PHI_ALONE)]


def _of_pair(pair: Pair, entries: dict, comparison: dict) -> list[Line]:
    rows = [(q, entries[q.key]) for q in CATALOGUE if q.main and q.better and q.key in entries]
    atomicity = [row for row in rows if row[0].speaks_of == "atomicity"]
    fidelity = [row for row in rows if row[0].speaks_of == "fidelity"]
    seeds = max((entry["n_seeds"] for entry in entries.values()), default=0)
    l0 = [comparison["arms"][arm]["means"].get("fidelity.l0") for arm in (pair.arm, pair.baseline)]
    realised = "" if None in l0 else f", realised L0 {l0[0]:.2f} and {l0[1]:.2f}"
    opening = f"{pair.arm.capitalize()} against {pair.baseline} ({seeds} seed{'s' if seeds != 1 else ''}{realised}):"
    if seeds < 2:
        conclusion, evidence = "1 seed, no interval, so nothing here is established.", _pointing(atomicity, fidelity)
    else:
        conclusion, evidence = _conclusion(atomicity), [*_robust(atomicity), *_established(atomicity, fidelity)]
    return [Line("conclusion", f"{opening} {conclusion}"), *(Line("evidence", text) for text in evidence)]


def _of_control(entries: dict) -> Line:
    """Control is trained without the penalty's weight, so every number of it must be solo's."""
    moved = [
        q for q in CATALOGUE if any(value["a"] != value["b"] for value in entries.get(q.key, {"values": ()})["values"])
    ]
    if not moved:
        return Line("conclusion", "Control (lambda2 = 0) equals solo on every measure, exactly: the control holds.")
    largest = max(moved, key=lambda quantity: abs(entries[quantity.key]["percent"] or 0))
    return Line(
        "conclusion",
        "Control (lambda2 = 0) differs from solo, which it must not: "
        f"{largest.label} {change(largest, entries[largest.key])}; "
        "the arms did not train alike, so no change of that size counts as an effect of the penalty.",
    )


def _conclusion(atomicity: list[Row]) -> str:
    more, less = _clear(atomicity, "better"), _clear(atomicity, "worse")
    moves_up = more or _before_holm(atomicity, "better")
    moves_down = less or _before_holm(atomicity, "worse")
    conclusions = (
        (
            moves_up and moves_down,
            "the measures of atomicity disagree, so these numbers do not show that the latents are more atomic.",
        ),
        (more and len(more) == len(atomicity), "every measure of atomicity says more atomic."),
        (more, f"{_count(more, atomicity)} more atomic, none says less."),
        (less, f"{_count(less, atomicity)} less atomic, none says more."),
        (
            moves_up or moves_down,
            "no measure of atomicity survives Holm's correction for so many, "
            "though some move by more than their own interval allows for.",
        ),
        (True, "no measure of atomicity moves by more than its interval allows for."),
    )
    return next(text for applies, text in conclusions if applies)


def _count(some: list[Row], of: list[Row]) -> str:
    return f"{len(some)} of {len(of)} measures of atomicity {'say' if len(some) > 1 else 'says'}"


def _robust(atomicity: list[Row]) -> list[str]:
    """What the measures say that no known case fools."""
    readings = [
        f"{q.label} {change(q, entry)} ({reading(q, entry) if leaves_out_zero(entry) else 'not told apart'})"
        for q, entry in atomicity
        if q.robust and entry["ci95"] is not None
    ]
    return [f"The measures that no known case fools: {', '.join(readings)}."] if readings else []


def _established(atomicity: list[Row], fidelity: list[Row]) -> list[str]:
    before = "by their own interval, but not after Holm's correction"
    return _named(
        ("More atomic by", _clear(atomicity, "better")),
        ("Less atomic by", _clear(atomicity, "worse")),
        (f"More atomic {before} for so many measures:", _before_holm(atomicity, "better")),
        (f"Less atomic {before}:", _before_holm(atomicity, "worse")),
        ("Not told apart from no change:", _open(atomicity)),
        ("It costs fidelity in", _clear(fidelity, "worse")),
        ("It gains fidelity in", _clear(fidelity, "better")),
        (
            "Fidelity changes only before Holm's correction in",
            _before_holm(fidelity, "worse") + _before_holm(fidelity, "better"),
        ),
        ("No clear change in fidelity by", _open(fidelity)),
    )


def _pointing(atomicity: list[Row], fidelity: list[Row]) -> list[str]:
    """Of one seed, which establishes nothing."""
    return _named(
        ("Pointing to more atomic:", _towards(atomicity, "better")),
        ("Pointing to less atomic:", _towards(atomicity, "worse")),
        ("Pointing to lower fidelity:", _towards(fidelity, "worse")),
        ("Pointing to higher fidelity:", _towards(fidelity, "better")),
        ("Unchanged:", _towards(atomicity + fidelity, "same")),
    )


def _named(*parts: tuple[str, list[Row]]) -> list[str]:
    """A sentence for each part that has rows."""
    return [
        f"{words} {', '.join(f'{q.label} {change(q, entry)}' for q, entry in rows)}." for words, rows in parts if rows
    ]


def _towards(rows: list[Row], way: str) -> list[Row]:
    return [row for row in rows if towards(*row) == way]


def _clear(rows: list[Row], way: str) -> list[Row]:
    """Those whose interval leaves out 0 on the side that is `better` or `worse`, after Holm's correction."""
    return [row for row in _towards(rows, way) if is_clear(row[1])]


def _before_holm(rows: list[Row], way: str) -> list[Row]:
    """Those whose own interval leaves out 0 on that side, but that do not survive Holm's correction."""
    return [row for row in _towards(rows, way) if leaves_out_zero(row[1]) and not is_clear(row[1])]


def _open(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not leaves_out_zero(row[1])]
