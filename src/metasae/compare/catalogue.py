"""What is compared: every measure, and pairs of arms.

A measure has a place in measures.json, a name in words, and perhaps a way that is better. The table of measures is
catalogue.csv, one row a measure. Comparison, verdict, figures, report and explorer all read it, so a new measure is one
row. Its columns:

path      the keys from the top of measures.json
label     the name in words
better    the direction that is more atomic, more faithful or easier to explain; empty for a plain description
main      `main` for a measure that belongs to the summary and the verdict
change    in what a change is given: %, or pp, hundredths of the measure's own unit
meaning   what it is, in half a sentence
"""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

# The first key of a path -> the group's title.
GROUPS = {
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
# What the measures of a group are evidence of, where they have a direction.
SPEAKS_OF = dict.fromkeys(GROUPS, "atomicity") | {"fidelity": "fidelity", "interp": "explanation"}
ROBUST = ("cooccurrence.fixed_marginals.lift_variance", "decomposability.meta_ve_excess_over_gaussian")


@dataclass(frozen=True)
class Quantity:
    """One row of the table.

    relative: whether a change is given in percent. A share that is itself a difference may lie near 0, so its change is
    given in pp.
    """

    path: tuple[str, ...]
    label: str
    better: Literal["lower", "higher"] | None
    main: bool
    relative: bool
    meaning: str

    @property
    def key(self) -> str:
        return ".".join(self.path)

    @property
    def group(self) -> str:
        return self.path[0]

    @property
    def speaks_of(self) -> str | None:
        """What its direction is evidence of: atomicity, fidelity or explanation; None for a plain description."""
        return SPEAKS_OF[self.group] if self.better else None

    @property
    def robust(self) -> bool:
        """Whether it was right in every case whose answer is known (docs/measures.md), without knowing the truth."""
        return self.key in ROBUST


with Path(__file__).with_name("catalogue.csv").open(encoding="utf-8", newline="") as _table:
    CATALOGUE = tuple(
        Quantity(
            path=tuple(row["path"].split("/")),
            label=row["label"],
            better=row["better"] or None,
            main=row["main"] == "main",
            relative=row["change"] == "%",
            meaning=row["meaning"],
        )
        for row in csv.DictReader(_table)
    )

WHY_NOT_PHI_ALONE = (
    "Mean |phi| alone is not atomicity: at fixed lift it is proportional to L0, and it falls when firing rates spread, "
    "so it is read beside its excess over nulls, the lift, nearest-partner phi, the share of strong pairs and the "
    "critics on the decoder rows."
)


class Pair(NamedTuple):
    """An arm held against the baseline. Its differences are arm - baseline: `a` and `b` in compare.json.

    Only JSON and text hold it as a string.
    """

    arm: str
    baseline: str

    def __str__(self) -> str:
        return f"{self.arm} vs {self.baseline}"


def by_pair(pairs: dict[str, dict]) -> dict[Pair, dict]:
    """The `pairs` of compare.json or interp.json, whose keys are text (`joint vs solo`), with objects for keys."""
    return {Pair(*name.split(" vs ")): entries for name, entries in pairs.items()}


def grouped(keys: Collection[str]) -> list[tuple[str, list[Quantity]]]:
    """(title of a group, its quantities whose key is among `keys`) of every group that has any."""
    groups = [(title, [q for q in CATALOGUE if q.group == group and q.key in keys]) for group, title in GROUPS.items()]
    return [(title, quantities) for title, quantities in groups if quantities]


def value_of(measures: dict, quantity: Quantity) -> float | None:
    """The number in a measures.json, or None where it has none."""
    value = _at(measures, quantity.path)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def left_out_of(measures: dict, quantity: Quantity) -> list[float | None] | None:
    """The number without each block of documents in turn, from `leave_one_out` beside it; None where there is none."""
    *above, name = quantity.path
    return _at(measures, (*above, "leave_one_out", name)) or None


def _at(measures: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        measures = measures.get(key) if isinstance(measures, dict) else None
    return measures
