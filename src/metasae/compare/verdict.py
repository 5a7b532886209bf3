"""A comparison in plain words. It follows the numbers whichever way they point."""

import re

from metasae.compare.catalogue import CATALOGUE, WHY_NOT_PHI_ALONE, Quantity
from metasae.intervals.statistics import is_clear, leaves_out_zero

EXACT = "equals solo on every measure, exactly: the control holds"


def write_verdict(comparison: dict) -> str:
    """One paragraph. comparison: as `metasae.compare.compare.compare` makes it, still without its verdict."""
    conditions, pairs = comparison["conditions"], comparison["pairs"]
    where = f"Judged on {conditions['n_tokens']:,} held-out tokens"
    if not pairs:
        arms = ", ".join(comparison["arms"])
        return f"{where}. Only {arms} was measured, and a difference needs solo and another arm: there is nothing to compare yet."
    sentences = [where + "."]
    for name, pair in pairs.items():
        sentences += _words_for_control(name, pair) if name == "control vs solo" else _words_for(name, pair, comparison)
    return " ".join([*sentences, WHY_NOT_PHI_ALONE])


def verdict_lines(comparison: dict) -> list[str]:
    """The verdict as lines: each pair's conclusion, what it rests on in a list below it."""
    pairs = [name.split(" vs ") for name in comparison["pairs"]]
    openings = (
        "Judged on",
        "Only ",
        "Control (",
        WHY_NOT_PHI_ALONE,
        *(f"{a.capitalize()} against {b}" for a, b in pairs),
    )
    return [
        line if line.startswith(openings) else f"- {line}"
        for line in re.split(r"(?<=\.) (?=[A-Z])", comparison["verdict"])
    ]


def change(quantity: Quantity, entry: dict) -> str:
    """`-4.1% [-6.2, -2.0]`; in hundredths (`pp`) for a share that is itself a difference; `0` where every seed is as in solo."""
    if entry["difference"] is None:
        return "-"
    if all(value["a"] == value["b"] for value in entry["values"]):
        return "0"
    if not quantity.relative:
        hundredths = None if entry["ci95"] is None else [100 * end for end in entry["ci95"]]
        return _with_interval(100 * entry["difference"], " pp", hundredths)
    if entry["percent"] is not None:
        return _with_interval(entry["percent"], "%", entry["percent_ci95"])
    interval = entry["ci95"]
    return f"{entry['difference']:+.2g}" + (f" [{interval[0]:+.2g}, {interval[1]:+.2g}]" if interval else "")


def towards(quantity: Quantity, entry: dict) -> str:
    """`better`, `worse` or `same` by the sign of the difference, or "" for a quantity without a direction."""
    if quantity.better is None or entry["difference"] is None:
        return ""
    if entry["difference"] == 0:
        return "same"
    return "better" if (entry["difference"] < 0) == (quantity.better == "lower") else "worse"


def _words_for(name: str, pair: dict, comparison: dict) -> list[str]:
    a, b = name.split(" vs ")
    seeds = max((entry["n_seeds"] for entry in pair.values()), default=0)
    l0 = [comparison["arms"][arm]["means"].get("fidelity.l0") for arm in (a, b)]
    seen = [
        (quantity, pair[quantity.key])
        for quantity in CATALOGUE
        if quantity.main and quantity.better and quantity.key in pair
    ]
    atomicity = [entry for entry in seen if entry[0].speaks_of == "atomicity"]
    fidelity = [entry for entry in seen if entry[0].speaks_of == "fidelity"]
    realised = f", realised L0 {l0[0]:.2f} and {l0[1]:.2f}" if None not in l0 else ""
    opening = f"{a.capitalize()} against {b} ({seeds} seed{'s' if seeds != 1 else ''}{realised}):"
    if seeds < 2:
        return [f"{opening} 1 seed, no interval, so nothing here is established.", *_pointing(atomicity, fidelity)]
    return [f"{opening} {_conclusion(atomicity)}", *_robust(atomicity), *_listed(atomicity, fidelity)]


def _robust(atomicity: list) -> list[str]:
    """What the measures say that no known case fools."""
    words = {"better": "more atomic", "worse": "less atomic"}

    def reads(quantity: Quantity, entry: dict) -> str:
        if not leaves_out_zero(entry):
            return "not told apart"
        return words[towards(quantity, entry)] + ("" if is_clear(entry) else ", not after Holm")

    said = [
        f"{quantity.label} {change(quantity, entry)} ({reads(quantity, entry)})"
        for quantity, entry in atomicity
        if quantity.robust and entry["ci95"] is not None
    ]
    return [f"The measures that no known case fools: {', '.join(said)}."] if said else []


def _clearly(entries: list, way: str) -> list:
    """The entries whose interval leaves out 0 on the side that is `better` or `worse`."""
    return [entry for entry in entries if is_clear(entry[1]) and towards(*entry) == way]


def _nearly(entries: list, way: str) -> list:
    """The entries whose own interval leaves out 0 on that side, but that do not survive Holm's correction."""
    return [
        entry for entry in entries if leaves_out_zero(entry[1]) and not is_clear(entry[1]) and towards(*entry) == way
    ]


def _conclusion(atomicity: list) -> str:
    more = _clearly(atomicity, "better")
    less = _clearly(atomicity, "worse")
    either = [bool(some or _nearly(atomicity, way)) for some, way in ((more, "better"), (less, "worse"))]
    if all(either):
        return "the measures of atomicity disagree, so these numbers do not show that the latents are more atomic."
    if more and len(more) == len(atomicity):
        return "every measure of atomicity says more atomic."
    if more:
        return f"{_count(more, atomicity)} more atomic, none says less."
    if less:
        return f"{_count(less, atomicity)} less atomic, none says more."
    if any(either):
        return "no measure of atomicity survives Holm's correction for so many, though some move by more than their own interval allows for."
    return "no measure of atomicity moves by more than its interval allows for."


def _count(some: list, of: list) -> str:
    return f"{len(some)} of {len(of)} measures of atomicity {'say' if len(some) > 1 else 'says'}"


def _listed(atomicity: list, fidelity: list) -> list[str]:
    parts = [
        ("More atomic by", _clearly(atomicity, "better")),
        ("Less atomic by", _clearly(atomicity, "worse")),
        (
            "More atomic by their own interval, but not after Holm's correction for so many measures:",
            _nearly(atomicity, "better"),
        ),
        ("Less atomic by their own interval, but not after Holm's correction:", _nearly(atomicity, "worse")),
        ("Not told apart from no change:", [entry for entry in atomicity if not leaves_out_zero(entry[1])]),
        ("It costs fidelity in", _clearly(fidelity, "worse")),
        ("It gains fidelity in", _clearly(fidelity, "better")),
        ("Fidelity changes only before Holm's correction in", _nearly(fidelity, "worse") + _nearly(fidelity, "better")),
        ("No clear change in fidelity by", [entry for entry in fidelity if not leaves_out_zero(entry[1])]),
    ]
    return [f"{words} {_names(entries)}." for words, entries in parts if entries]


def _pointing(atomicity: list, fidelity: list) -> list[str]:
    parts = [
        ("Pointing to more atomic:", [entry for entry in atomicity if towards(*entry) == "better"]),
        ("Pointing to less atomic:", [entry for entry in atomicity if towards(*entry) == "worse"]),
        ("Pointing to lower fidelity:", [entry for entry in fidelity if towards(*entry) == "worse"]),
        ("Pointing to higher fidelity:", [entry for entry in fidelity if towards(*entry) == "better"]),
        ("Unchanged:", [entry for entry in atomicity + fidelity if towards(*entry) == "same"]),
    ]
    return [f"{words} {_names(entries)}." for words, entries in parts if entries]


def _words_for_control(name: str, pair: dict) -> list[str]:
    moved = [
        quantity
        for quantity in CATALOGUE
        if quantity.key in pair and any(value["a"] != value["b"] for value in pair[quantity.key]["values"])
    ]
    if not moved:
        return [f"Control (lambda2 = 0) {EXACT}."]
    largest = max(moved, key=lambda quantity: abs(pair[quantity.key]["percent"] or 0))
    return [
        f"Control (lambda2 = 0) differs from solo, which it must not: {largest.label} {change(largest, pair[largest.key])}; "
        "the arms did not train alike, so no change of that size counts as an effect of the penalty."
    ]


def _names(entries: list) -> str:
    return ", ".join(f"{quantity.label} {change(quantity, entry)}" for quantity, entry in entries)


def _with_interval(value: float, unit: str, interval: list[float] | None) -> str:
    return f"{_signed(value)}{unit}" + (f" [{_signed(interval[0])}, {_signed(interval[1])}]" if interval else "")


def _signed(value: float) -> str:
    """About two significant digits; a small change is not written as 0."""
    for limit, digits in ((100, "+.0f"), (1, "+.1f"), (0.005, "+.2f")):
        if abs(value) >= limit:
            return f"{value:{digits}}"
    return f"{value:+.0e}" if value else "+0"
