"""The verdict on a comparison, in plain words, whichever way the numbers point.

A sentence says whether the arms were trained enough. Each pair of arms has three lines: what known features say
(truth), how latents fire and lie (description) and fidelity. Truth alone names a direction, and only where the arms
were trained enough.
"""

from metasae.compare.catalogue import CATALOGUE, Pair, Quantity, by_pair, change, matters, text_error, towards
from metasae.compare.older import completed
from metasae.compare.trained import LIMITS, missing_its_limit
from metasae.intervals.statistics import is_clear, leaves_out_zero

# A measure and its difference between the two arms of a pair.
Row = tuple[Quantity, dict]
KINDS = ("trained", "truth", "description", "fidelity")
# Realised L0 are alike within this share.
SAME_L0 = 0.05
_NAMES = {
    "r": "r with another seed",
    "fall": "the fall of FVU at the full learning rate",
    "share": "spike-ins recovered",
}


def verdict_of(comparison: dict) -> list[dict[str, str]]:
    """A list of {kind, text}, kind one of KINDS, as compare.json keeps it.

    comparison: as `metasae.compare.compare.compare` makes it, with `trained`.
    """
    lines = [("trained", _trained(comparison))]
    if not comparison["pairs"]:
        arms = ", ".join(comparison["arms"])
        text = f"Only {arms} was measured, and a difference needs solo and another arm: nothing to compare yet."
        lines.append(("truth", text))
    for pair, entries in by_pair(comparison["pairs"]).items():
        is_control = pair == Pair("control", "solo")
        lines += [("fidelity", _of_control(entries))] if is_control else _of_pair(pair, entries, comparison)
    return [{"kind": kind, "text": text} for kind, text in lines]


def headline(comparison: dict) -> str:
    """The verdict in one sentence: what known features say of the first arm that is held against the baseline.

    comparison: as for `verdict_of`, or a compare.json; of an earlier version it may lack `pairs` or `trained`.
    """
    comparison = completed(comparison)
    pairs = [pair for pair in by_pair(comparison["pairs"]) if pair.arm != "control"]
    if not pairs:
        return "Nothing is compared yet: a difference needs two arms that are measured."
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
    how, fidelity_of = "How latents fire and lie", "Fidelity"
    if len(comparison["pairs"]) > 1:
        how, fidelity_of = f"{pair.arm.capitalize()}, how latents fire and lie", f"{pair.arm.capitalize()}, fidelity"
    return [
        ("truth", f"{opening} {_direction(truth, enough, seeds, _l0(pair, comparison))} {_truth(truth, enough)}"),
        ("description", f"{how} (no side is better): {_description(described)}"),
        ("fidelity", f"{fidelity_of}: {_fidelity(fidelity)}"),
    ]


def _setting(pair: Pair, seeds: int, comparison: dict) -> str:
    """What the numbers hold under."""
    l0 = _l0(pair, comparison)
    realised = "" if None in l0 else f", realised L0 {l0[0]:.2f} and {l0[1]:.2f}"
    tokens = f"{comparison['conditions']['n_tokens']:,} held-out tokens"
    return f"{seeds} seed{'s' if seeds != 1 else ''}, {tokens}{realised}"


def _l0(pair: Pair, comparison: dict) -> list[float | None]:
    return [comparison["arms"][arm]["means"].get("fidelity.l0") for arm in (pair.arm, pair.baseline)]


def _direction(truth: list[Row], enough: bool | None, seeds: int, l0: list[float | None]) -> str:
    if not truth:
        return "nothing is known of which arm has more atomic latents, as no known features were measured."
    if enough is False:
        return "not trained enough to say which arm has more atomic latents."
    if seeds < 2:
        return "1 seed, no interval, so no direction is named."
    if enough is None:
        return "no direction is named, as it is not known whether training was long enough."
    if None not in l0 and abs(l0[0] - l0[1]) > SAME_L0 * l0[1]:
        return "no direction is named, as realised L0 differ, and fewer weak firings raise F1 by themselves."
    better, worse = (_clear(truth, way) for way in ("better", "worse"))
    if better and worse:
        return "known features disagree, so no direction is named."
    if better or worse:
        return f"its latents are {'more' if better else 'less'} atomic."
    return "no difference in atomicity could be told."


def _trained(comparison: dict) -> str:
    """The three signs of a training that was long enough, each beside its limit."""
    known = comparison["trained"]
    parts = [
        f"r with another seed {known['r']:.2f} ({LIMITS['r']:g} or more)" if known["r"] is not None else "",
        f"FVU falls by {100 * known['fall']:.2g}% into the last tenth at the full learning rate "
        f"(under {100 * LIMITS['fall']:g}%)"
        if known["fall"] is not None
        else "",
        f"{comparison['baseline']} recovers {100 * known['share']:.0f}% of what a linear probe finds "
        f"({100 * LIMITS['share']:.0f}% or more)"
        if known["share"] is not None
        else "",
    ]
    unknown = [_NAMES[key] for key in _NAMES if known[key] is None]
    told = ", ".join(part for part in parts if part)
    opening = {True: "Trained enough", False: "Not trained enough", None: "Training not judged"}[known["enough"]]
    missing = f"{'; ' if told else ''}not known: {', '.join(unknown)}" if unknown else ""
    advice = " Train longer (train.tokens)." if missing_its_limit(known) else ""
    return f"{opening}: {told}{missing}.{advice}"


def _truth(truth: list[Row], enough: bool | None) -> str:
    if not truth:
        return "Spike-ins (spikes.n) or the bank of concepts (measure.concepts) would tell."
    if not enough:
        return f"Known features: {_listed(truth)}."
    return f"Known features: {_told(truth, 'nearer to the truth by', 'further from it by')}"


def _fidelity(fidelity: list[Row]) -> str:
    return _told(fidelity, "it gains", "it costs") if fidelity else "not measured."


def _told(rows: list[Row], better: str, worse: str) -> str:
    """better, worse: the words before what is clear on that side."""
    parts = (
        (better, _clear(rows, "better")),
        (worse, _clear(rows, "worse")),
        ("clear, but too small to matter:", _small(rows)),
        ("not told apart:", _open(rows)),
    )
    return "; ".join(f"{words} {_listed(members)}" for words, members in parts if members) + "."


def _description(rows: list[Row]) -> str:
    """Those that move by more than their own interval; each is one of many, so some do by chance."""
    if not rows:
        return "not measured."
    moved = [row for row in rows if leaves_out_zero(row[1])]
    rest = len(rows) - len(moved)
    told = f"{_listed(moved)}; " if moved else ""
    return f"{told}{rest} of {len(rows)} main measures within their own interval (not corrected for their number)."


def _of_control(entries: dict) -> str:
    """Control is trained without the penalty's weight, so every number of it must be solo's."""
    moved = [
        q for q in CATALOGUE if any(value["a"] != value["b"] for value in entries.get(q.key, {"values": ()})["values"])
    ]
    if not moved:
        return "Control (lambda2 = 0) equals solo on every measure, exactly: the control holds."
    largest = max(moved, key=lambda quantity: abs(entries[quantity.key]["percent"] or 0))
    return (
        "Control (lambda2 = 0) differs from solo, which it must not: "
        f"{largest.label} {change(largest, entries[largest.key])}; "
        "the arms did not train alike, so no change of that size counts as an effect of the penalty."
    )


def _listed(rows: list[Row]) -> str:
    return ", ".join(f"{q.label} {change(q, entry)}{_beside(q, entry)}" for q, entry in rows)


def _beside(quantity: Quantity, entry: dict) -> str:
    """What an interval lacks, and the smallest change that could have been told where none was; in brackets."""
    remarks = filter(None, (text_error(quantity, entry), _least(quantity, entry)))
    told = "; ".join(remarks)
    return f" ({told})" if told else ""


def _least(quantity: Quantity, entry: dict) -> str:
    """The smallest change that could have been told, where none was."""
    if entry.get("smallest") is None or is_clear(entry):
        return ""
    if not quantity.relative:
        return f"only {_short(100 * entry['smallest'])} pp or more could be told"
    if not entry["b"]:
        return ""
    return f"only {_short(100 * entry['smallest'] / abs(entry['b']))}% or more could be told"


def _short(value: float) -> str:
    """Two digits, and never a power of ten."""
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def _clear(rows: list[Row], way: str) -> list[Row]:
    """Those that are clear after Holm's correction, large enough to matter, and on that side (`better`, `worse`)."""
    return [row for row in rows if towards(*row) == way and is_clear(row[1]) and matters(*row)]


def _small(rows: list[Row]) -> list[Row]:
    return [row for row in rows if is_clear(row[1]) and not matters(*row)]


def _open(rows: list[Row]) -> list[Row]:
    return [row for row in rows if not is_clear(row[1])]
