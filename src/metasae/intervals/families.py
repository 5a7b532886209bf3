"""Holm's step-down adjustment of p-values, for several measures that answer one question (a family).

p_holm of the i-th smallest of m p-values = max over j <= i of min(1, (m - j + 1) p_j). Calling everything with p_holm
<= level different errs anywhere in the family with probability at most `level`, however the measures depend on each
other (Holm 1979, Scand. J. Statist. 6:65). A family is all rows of a pair of arms that are put into words; it is fixed
before the numbers are seen.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

from metasae.intervals.crossed import ALPHA, t_half_width
from metasae.intervals.statistics import Difference


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Adjusts one family. p_values: {name: p}; returns {name: p_holm} in the same order.

    p_holm is None if there is no p-value; the test then does not count in the family.
    """
    ranked = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted, largest = dict.fromkeys(p_values), 0.0
    for place, (p, name) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - place) * p))
        adjusted[name] = largest
    return adjusted


def adjust(differences: Mapping[str, Difference], families: Mapping[str, str | None]) -> dict[str, Difference]:
    """The differences with `p_holm` and `smallest` filled in, family by family.

    families: {name: family}; None or absent for no family.
    """
    adjusted = dict(differences)
    for family in {family for family in families.values() if family is not None}:
        members = [name for name in differences if families.get(name) == family]
        p_values = {name: differences[name].p for name in members}
        tests = sum(p is not None for p in p_values.values())
        for name, p_holm in holm(p_values).items():
            smallest = None if p_holm is None else _half_width(differences[name], ALPHA / tests)
            adjusted[name] = replace(differences[name], p_holm=p_holm, smallest=smallest)
    return adjusted


def _half_width(difference: Difference, p: float) -> float:
    """Half the width of a difference's interval of level 1 - p. With p = .05 / m it is the difference that the first of
    m tests requires.
    """
    parts = (
        (difference.se_seeds, difference.n_seeds),
        (difference.se_documents, difference.n_blocks),
        (difference.se_critics, difference.n_critics),
    )
    return math.hypot(*(t_half_width(se**2, count, p) for se, count in parts if se))
