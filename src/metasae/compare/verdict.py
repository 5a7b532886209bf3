"""The verdict on a comparison in words.

One line says whether the arms were trained enough. Each pair of arms has three lines: known features (truth), firing
and decoder rows (description), and fidelity. Only truth names a direction, and only if the arms were trained enough.
"""

from metasae.compare.catalogue import CATALOGUE, Pair, Quantity, by_pair, change, matters, number, text_error, towards
from metasae.compare.older import completed
from metasae.compare.trained import LIMITS, missing_its_limit
from metasae.intervals.statistics import is_clear, leaves_out_zero

# A measure and its difference between the two arms of a pair.
Row = tuple[Quantity, dict]
KINDS = ("trained", "truth", "description", "fidelity")
# Two realised L0 count as equal within this share.
SAME_L0 = 0.05
_NAMES = {
    # the cosine of matched decoder rows
    "r": "r with another seed",
    "fall": "the fall of FVU at the full learning rate",
    "share": "the share of spike-ins recovered",
}


def verdict_of(comparison: dict) -> list[dict[str, str]]:
    """The verdict: a list of {kind, text}, kind one of KINDS, as in compare.json.

    comparison: as `metasae.compare.compare.compare` makes it, with `trained`.
    """
    lines = [("trained", _trained(comparison))]
    if not comparison["pairs"]:
        arms = ", ".join(comparison["arms"])
        text = f"Only {arms} is measured; a comparison needs a second arm, so there is nothing to compare yet."
        lines.append(("truth", text))
    for pair, entries in by_pair(comparison["pairs"]).items():
        is_control = pair == Pair("control", "solo")
        lines += [("fidelity", _of_control(entries))] if is_control else _of_pair(pair, entries, comparison)
    return [{"kind": kind, "text": text} for kind, text in lines]


def headline(comparison: dict) -> str:
    """The verdict in one sentence: what known features say of the first arm that is compared with the baseline.

    comparison: as for `verdict_of`, or a compare.json; of an earlier version it may lack `pairs` or `trained`.
    """
    comparison = completed(comparison)
    pairs = [pair for pair in by_pair(comparison["pairs"]) if pair.arm != "control"]
    if not pairs:
        return "Nothing is compared yet: a comparison needs two measured arms."
    pair, entries = pairs[0], comparison["pairs"][str(pairs[0])]
    truth = [(q, entries[q.key]) for q in CATALOGUE if q.kind == "truth" and q.in_words and q.key in entries]
    seeds = max((entry["n_seeds"] for entry in entries.values()), default=0)
    told = _direction(truth, comparison["trained"]["enough"], seeds, _l0(pair, comparison))
    return f"{pair.arm.capitalize()} against {pair.baseline}, {seeds} seed{'s' if seeds != 1 else ''}: {told}"


def _of_pair(pair: Pair, entries: dict, comparison: dict) -> list[tuple[str, str]]:
    rows = {kind: [(q, entries[q.key]) for q in CATALOGUE if q.kind == kind and q.key in entries] for kind in KINDS}
    truth, fidelity = ([row for row in rows[kind] if row[0].in_words] for kind in ("truth", "fidelity"))
    described = [row for row in rows["description"] if row[0].main]
    seeds = max((entry["n_seeds"] for entry in entries.values()), default=0)
    enough = comparison["trained"]["enough"]
    opening = f"{pair.arm.capitalize()} against {pair.baseline} ({_setting(pair, seeds, comparison)}):"
    how, fidelity_of = "Firing and decoder rows", "Fidelity"
    if len(comparison["pairs"]) > 1:
        how, fidelity_of = f"{pair.arm.capitalize()}, firing and decoder rows", f"{pair.arm.capitalize()}, fidelity"
    return [
        ("truth", f"{opening} {_direction(truth, enough, seeds, _l0(pair, comparison))} {_truth(truth, enough)}"),
        ("description", f"{how} (a description, no side is better): {_description(described)}"),
        ("fidelity", f"{fidelity_of}: {_fidelity(fidelity)}"),
    ]


def _setting(pair: Pair, seeds: int, comparison: dict) -> str:
    """The conditions of the numbers: seeds, tokens and realised L0."""
    l0 = _l0(pair, comparison)
    realised = "" if None in l0 else f", realised L0 {l0[0]:.2f} and {l0[1]:.2f}"
    tokens = f"{comparison['conditions']['n_tokens']:,} held-out tokens"
    return f"{seeds} seed{'s' if seeds != 1 else ''}, {tokens}{realised}"


def _l0(pair: Pair, comparison: dict) -> list[float | None]:
    return [comparison["arms"][arm]["means"].get("fidelity.l0") for arm in (pair.arm, pair.baseline)]


def _direction(truth: list[Row], enough: bool | None, seeds: int, l0: list[float | None]) -> str:
    if not truth:
        return "it is not known which arm has more atomic latents, as no known features were measured."
    if enough is False:
        return "not trained enough to say which arm has more atomic latents."
    if seeds < 2:
        return "no direction is named, as one seed gives no interval."
    if enough is None:
        return "no direction is named, as it is not known whether training was long enough."
    if None not in l0 and abs(l0[0] - l0[1]) > SAME_L0 * l0[1]:
        return "no direction is named, as the realised L0 differ, and having fewer weak firings raises F1 by itself."
    better, worse = (_clear(truth, way) for way in ("better", "worse"))
    if better and worse:
        return "no direction is named, as measures of known features disagree."
    if better or worse:
        return f"its latents are {'more' if better else 'less'} atomic by {_names(better or worse)}{_others(truth)}."
    return "there is no clear difference in atomicity."


def _names(rows: list[Row]) -> str:
    return " and ".join(quantity.label for quantity, _ in rows)


def _others(truth: list[Row]) -> str:
    """What the headline says of measures of known features without a clear change, so that one cannot stand for all."""
    others = _open(truth)
    return f", with no clear difference in {_names(others)}" if others else ""


def _trained(comparison: dict) -> str:
    """The line on whether training was long enough: three numbers with their limits."""
    known, told = comparison["trained"], []
    if known["r"] is not None:
        told.append(f"r with another seed {known['r']:.2f} ({LIMITS['r']:g} or more)")
    if known["fall"] is not None:
        told.append(
            f"FVU falls by {100 * known['fall']:.2g}% in the last tenth of the steps at the full learning rate "
            f"(under {100 * LIMITS['fall']:g}%)"
        )
    if known["share"] is not None:
        told.append(
            f"{comparison['baseline']} recovers {100 * known['share']:.0f}% of what a linear probe finds "
            f"({100 * LIMITS['share']:.0f}% or more)"
        )
    unknown = [name for key, name in _NAMES.items() if known[key] is None]
    opening = {True: "Trained enough", False: "Not trained enough", None: "Not known if trained enough"}
    missing = f"{'; ' if told else ''}no value for {', '.join(unknown)}" if unknown else ""
    advice = " Train longer (train.tokens)." if missing_its_limit(known) else ""
    return f"{opening[known['enough']]}: {', '.join(told)}{missing}.{advice}"


def _truth(truth: list[Row], enough: bool | None) -> str:
    if not truth:
        return "Spike-ins (spikes.n) or concepts (measure.concepts) would show it."
    if not enough:
        return f"Known features: {_listed(truth)}."
    return f"Known features: {_told(truth)}"


def _fidelity(fidelity: list[Row]) -> str:
    return _told(fidelity) if fidelity else "not measured."


def _told(rows: list[Row]) -> str:
    parts = {
        "clearly better": _clear(rows, "better"),
        "clearly worse": _clear(rows, "worse"),
        "clear, but too small to matter": _small(rows),
        "no clear difference": _open(rows),
    }
    return "; ".join(f"{words}: {_listed(members)}" for words, members in parts.items() if members) + "."


def _description(rows: list[Row]) -> str:
    """Lists the measures whose interval excludes 0. They are many, so some do by chance."""
    if not rows:
        return "not measured."
    moved = [row for row in rows if leaves_out_zero(row[1])]
    rest = len(rows) - len(moved)
    told = f"{_listed(moved)}; " if moved else ""
    return f"{told}no clear change in {rest} of {len(rows)} main measures (not corrected for their number)."


def _of_control(entries: dict) -> str:
    """Control is trained without the penalty, so all its numbers must equal solo's."""
    moved = [
        q for q in CATALOGUE if any(value["a"] != value["b"] for value in entries.get(q.key, {"values": ()})["values"])
    ]
    if not moved:
        return "Control (lambda2 = 0) equals solo exactly in every measure, as it must."
    largest = max(moved, key=lambda quantity: abs(entries[quantity.key]["percent"] or 0))
    return (
        "Control (lambda2 = 0) differs from solo, which it must not. The largest difference: "
        f"{largest.label} {change(largest, entries[largest.key])}. The arms were not trained alike, so a change of "
        "that size is no evidence of an effect of the penalty."
    )


def _listed(rows: list[Row]) -> str:
    return ", ".join(f"{q.label} {change(q, entry)}{_beside(q, entry)}" for q, entry in rows)


def _beside(quantity: Quantity, entry: dict) -> str:
    """In brackets: what an interval lacks, and the smallest change that would have been clear."""
    remarks = filter(None, (text_error(quantity, entry), _least(quantity, entry)))
    told = "; ".join(remarks)
    return f" ({told})" if told else ""


def _least(quantity: Quantity, entry: dict) -> str:
    """The smallest change that would have been clear, in the unit of the change, for a measure without a clear one."""
    smallest = entry.get("smallest")
    if smallest is None or is_clear(entry):
        return ""
    if not quantity.relative:
        # a share cannot change by more than all of it
        if quantity.of and smallest > 1:
            return f"no change could be clear with {entry['n_seeds']} seeds"
        return f"a change would be clear from {_short(100 * smallest)} pp on"
    if entry["percent"] is None:
        return f"a change would be clear from {number(smallest, 2)} on"
    return f"a change would be clear from {_short(100 * smallest / abs(entry['b']))}% on"


def _short(value: float) -> str:
    """A number with two digits, without an exponent."""
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def _clear(rows: list[Row], way: str) -> list[Row]:
    """The rows that are clear after Holm's correction, large enough to matter, and on that side (`better` or
    `worse`).
    """
    return [row for row in rows if towards(*row) == way and is_clear(row[1]) and matters(*row)]


def _small(rows: list[Row]) -> list[Row]:
    return [row for row in rows if is_clear(row[1]) and not matters(*row)]


def _open(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not is_clear(row[1])]
