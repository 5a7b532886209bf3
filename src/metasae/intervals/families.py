"""Several measures ask one question, so their p-values are adjusted together: Holm's step-down over a family.

p_holm of the i-th smallest of m p-values = max over j <= i of min(1, (m - j + 1) p_j). Calling everything with p_holm <= level
different errs anywhere in the family with probability at most `level`, however the measures depend on each other
(Holm 1979, Scand. J. Statist. 6:65). A family is what one sentence speaks of, such as the measures of atomicity; it is
fixed before the numbers are seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from metasae.intervals.crossed import ALPHA
from metasae.intervals.statistics import Difference


@dataclass(frozen=True)
class Adjusted:
    """One p-value of a family. p, p_holm: None where the measure has no p-value; it does not count in the family then."""

    p: float | None
    p_holm: float | None
    rejected: bool


def holm(p_values: Mapping[str, float | None], level: float = ALPHA) -> dict[str, Adjusted]:
    """p_values: name -> p, one family -> name -> adjusted, in the same order. Raises ValueError for a p that is not within [0, 1]."""
    for name, p in p_values.items():
        if p is not None and not 0 <= p <= 1:
            raise ValueError(f"{name}: a p-value lies within [0, 1], {p} does not")
    ranked = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted, largest = {}, 0.0
    for place, (p, name) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - place) * p))
        adjusted[name] = Adjusted(p, largest, largest <= level)
    return {name: adjusted.get(name, Adjusted(None, None, False)) for name in p_values}


def adjust(differences: Mapping[str, Difference], families: Mapping[str, str | None]) -> dict[str, Difference]:
    """The differences with `p_holm` filled in, each family for itself. families: name -> family, None or absent for no family."""
    adjusted = dict(differences)
    for family in {family for family in families.values() if family is not None}:
        members = [name for name in differences if families.get(name) == family]
        for name, found in holm({name: differences[name].p for name in members}).items():
            adjusted[name] = replace(differences[name], p_holm=found.p_holm)
    return adjusted
