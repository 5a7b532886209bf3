"""The measures that are compared, pairs of arms, and the words for one difference.

A measure has a place in measures.json, a label, and perhaps a direction that is better. The table of measures is
catalogue.csv, one row a measure. Comparison, verdict, figures, report and explorer all read it, so a new measure is one
row. Its columns:

path      the keys from the top of measures.json
label     the name in words
better    the direction that is nearer to the truth, more faithful or easier to explain; empty for a plain description
main      `main` for a measure in the summary; `words` if the verdict and the last column also put its change into words
change    the unit of a change: %, or pp, hundredths of the measure's own unit
of        for a share of counted things: the keys of their number
meaning   what it is and what fools it, for a reader who does not know the docs; sentences, without the last full stop
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from metasae.intervals.statistics import is_clear, leaves_out_zero

# {first key of a path: title of the group}
GROUPS = {
    "spikes": "Spike-ins",
    "concepts": "Concepts",
    "fidelity": "Fidelity",
    "cooccurrence": "Co-occurrence",
    "decomposability": "Decomposability",
    "seeds": "Seeds",
    "splits": "Splits of solo's latents",
    "merges": "Merges of solo's latents",
    "senses": "Word senses",
    "truth": "Planted truth",
    "side_effects": "Side effects of steering",
    "interp": "Auto-interp",
}
# What the measures of a group are about; a group that is not here describes firing and decoder rows.
_KINDS = {"spikes": "truth", "concepts": "truth", "senses": "truth", "truth": "truth", "fidelity": "fidelity"}
# Groups of measures of the decoder rows alone. Their error comes from seeds and critics, not from text.
_WITHOUT_TEXT = ("decomposability", "seeds")
# A clear change below this, in its unit (% or pp), is called too small to matter.
MATTERS = 1.0


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    in_words: the change is put into words. Such a measure is about truth or fidelity, and few fake dictionaries mislead
    it (docs/measures.md). All such rows of a pair are one family for Holm's correction.

    relative: whether a change is given in percent. A share that is itself a difference may be near 0, so its change is
    given in pp.
    """

    path: tuple[str, ...]
    label: str
    better: Literal["lower", "higher"] | None
    main: bool
    in_words: bool
    relative: bool
    of: tuple[str, ...]
    meaning: str

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def group(self) -> str:
        return self.path[0]

    @property
    def kind(self) -> Literal["truth", "description", "fidelity"]:
        """What the measure is about. Only truth, which is known without the SAE, can show that latents are more
        atomic.
        """
        return _KINDS.get(self.group, "description")


with Path(__file__).with_name("catalogue.csv").open(encoding="utf-8", newline="") as _table:
    CATALOGUE = tuple(
        Quantity(
            path=tuple(row["path"].split("/")),
            label=row["label"],
            better=row["better"] or None,
            main=row["main"] != "",
            in_words=row["main"] == "words",
            relative=row["change"] == "%",
            of=tuple(row["of"].split("/")) if row["of"] else (),
            meaning=row["meaning"],
        )
        for row in csv.DictReader(_table)
    )

WHY_NOT_PHI_ALONE = (
    "Mean |phi| alone is not atomicity: at fixed lift it is proportional to L0, and it falls when firing rates spread. "
    "Merged, blended and junk latents lower it too, and they lower the dependence of firing; decoder rows turned into "
    "noise lower the variance that a critic explains. Such numbers describe an SAE; only known features show whether "
    "it is more atomic."
)


# The measures of truth that a sweep shows, and weighs against fidelity, if they are measured.
TRUTH = ("spikes.recovery_f1", "concepts.best_f1", "truth.f1", "truth.blend_rate")


# A change as small as this is the rounding of sums over seeds, not a change.
_ROUNDING = 1e-12


class Pair(NamedTuple):
    """An arm compared with the baseline. Differences are arm - baseline, `a` - `b` in compare.json.

    In JSON and text it is a string, `joint vs solo`.
    """

    arm: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.arm} vs {self.baseline}"


def by_pair(pairs: dict[str, dict]) -> dict[Pair, dict]:
    """The `pairs` of compare.json or interp.json with `Pair` keys in place of text (`joint vs solo`)."""
    return {Pair(*name.split(" vs ")): entries for name, entries in pairs.items()}


def grouped(keys: Collection[str]) -> list[tuple[str, list[Quantity]]]:
    """[(title, quantities whose key is in `keys`)] of every group that has any."""
    groups = [(title, [q for q in CATALOGUE if q.group == group and q.key in keys]) for group, title in GROUPS.items()]
    return [(title, quantities) for title, quantities in groups if quantities]


def value_of(measures: dict, quantity: Quantity) -> float | None:
    """A quantity's number in a measures.json; None if there is none."""
    value = _at(measures, quantity.path)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def count_of(measures: dict, quantity: Quantity) -> int | None:
    """The number of things that a quantity is a share of; None if it is not such a share, or the number is not
    known.
    """
    return _at(measures, quantity.of) or None if quantity.of else None


def left_out_of(measures: dict, quantity: Quantity) -> list[float | None] | None:
    """A quantity's values with each block of documents left out in turn, from `leave_one_out` beside it; None if there
    are none.
    """
    *above, name = quantity.path
    return _at(measures, (*above, "leave_one_out", name)) or None


def _at(measures: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return measures


def number(value: float | None, digits: int = 4) -> str:
    """A number with this many significant digits, without an exponent; - for None.

    The explorer writes numbers in the same way (static/dom.js): 0.5000, 32.00, 12,346, and 3 for a whole number.
    """
    if value is None:
        return "-"
    if float(value).is_integer() or abs(value) >= 10**digits - 0.5:
        return f"{value:,.0f}"
    return plain(f"{value:#.{digits}g}")


def plain(text: str) -> str:
    """A number's text without an exponent: 7.1e-05 -> 0.000071. A sign stays."""
    mantissa, exponent, _ = text.partition("e")
    return format(Decimal(text), "+f" if mantissa.startswith("+") else "f") if exponent else text


def change(quantity: Quantity, entry: dict) -> str:
    """A change as text: `-4.1% [-6.2, -2.0]`, or in pp (`scaled`); `0` if every seed equals the baseline.

    entry, here and below: a difference as in compare.json (`metasae.intervals.statistics.Difference.as_dict`).
    """
    if entry["difference"] is None:
        return "-"
    if all(value["a"] == value["b"] for value in entry["values"]):
        return "0"
    value, interval = scaled(quantity, entry)
    if value is None:
        ends = entry["ci95"] and [plain(f"{end:+.2g}") for end in entry["ci95"]]
        difference = entry["difference"] if abs(entry["difference"]) > _ROUNDING else 0.0
        return _with_interval(plain(f"{difference:+.2g}"), ends)
    unit = "%" if quantity.relative else " pp"
    return _with_interval(_signed(value) + unit, interval and list(map(_signed, interval)))


def scaled(quantity: Quantity, entry: dict) -> tuple[float | None, list[float] | None]:
    """(change, interval) in percent, or in pp (hundredths) for a share that is itself a difference; None for none."""
    if quantity.relative or entry["difference"] is None:
        return entry["percent"], entry["percent_ci95"]
    return 100 * entry["difference"], entry["ci95"] and [100 * end for end in entry["ci95"]]


def towards(quantity: Quantity, entry: dict) -> str:
    """`better`, `worse` or `same` by the sign of the difference, or "" for a quantity without a direction."""
    if quantity.better is None or entry["difference"] is None:
        return ""
    if entry["difference"] == 0:
        return "same"
    return "better" if (entry["difference"] < 0) == (quantity.better == "lower") else "worse"


def reading(quantity: Quantity, entry: dict, enough: bool | None = True) -> str:
    """A row's change in words: `clearly better`, `interval includes 0` ...; "" for a row that is not put into words.

    If there is no difference, the reason.

    enough: whether the arms are trained enough (`metasae.compare.trained`); otherwise a measure of truth gets no
    direction.
    """
    if entry["difference"] is None:
        return entry["note"]
    direction = towards(quantity, entry) if quantity.in_words else ""
    if direction == "same":
        return "no change"
    words = _in_words(quantity, entry, enough, direction) if direction else ""
    return "; ".join(filter(None, (words, text_error(quantity, entry))))


def text_error(quantity: Quantity, entry: dict) -> str:
    """`interval over seeds alone` for a measure of text whose interval lacks the error of the text; else ""."""
    lacks = entry["ci95"] is not None and not entry["n_blocks"] and quantity.group not in _WITHOUT_TEXT
    return "interval over seeds alone" if lacks else ""


def _in_words(quantity: Quantity, entry: dict, enough: bool | None, direction: str) -> str:
    if entry["ci95"] is None:
        return entry["note"]
    if not leaves_out_zero(entry):
        return "interval includes 0"
    if quantity.kind == "truth" and not enough:
        return "not trained enough to say" if enough is False else "not known if trained enough"
    if not is_clear(entry):
        return "not clear after Holm"
    return f"clearly {direction}" if matters(quantity, entry) else "clear, too small to matter"


def matters(quantity: Quantity, entry: dict) -> bool:
    """Whether a change is at least MATTERS. True if it cannot be given in its unit."""
    value, _ = scaled(quantity, entry)
    return value is None or abs(value) >= MATTERS


def named_side(quantity: Quantity, entry: dict, enough: bool | None) -> str:
    """`better` or `worse` if a row may be shown as that: it is clear after Holm's correction, large enough to matter
    and, for a measure of truth, the arms were trained enough; else "".
    """
    told = is_established(entry) and matters(quantity, entry) and (quantity.kind != "truth" or enough is True)
    return towards(quantity, entry) if told else ""


def is_established(entry: dict) -> bool:
    """Whether a difference that is put into words is clear after Holm's correction."""
    return is_clear(entry) and entry.get("p_holm") is not None


def _with_interval(value: str, ends: list[str] | None) -> str:
    return f"{value} [{', '.join(ends)}]" if ends else value


def _signed(value: float) -> str:
    """A change with a sign and about two significant digits; a small change is not written as 0."""
    for limit, digits in ((100, "+.0f"), (1, "+.1f"), (0.005, "+.2f")):
        if abs(value) >= limit:
            return f"{value:{digits}}"
    return plain(f"{value:+.0e}") if abs(value) > _ROUNDING else "+0"
