"""report.html: the templates beside this file, and what they are filled with."""

import base64
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from metasae.compare.catalogue import CATALOGUE, GROUPS, Quantity
from metasae.compare.pair import by_pair
from metasae.compare.tables import conditions_line
from metasae.compare.templates import fill
from metasae.compare.verdict import verdict_lines
from metasae.compare.words import number

Mean = tuple[float | None, list[int] | None]


def page(comparison: dict, recipe: dict[str, str], images: dict[str, bytes], latents: str = "") -> str:
    """The whole HTML document.

    recipe: dotted key -> value as text. images: name -> PNG. latents: HTML about single latents.
    """
    lines = groupby(verdict_lines(comparison), lambda line: line.kind == "evidence")
    of_groups = [(title, [q for q in CATALOGUE if q.group == group]) for group, title in GROUPS.items()]
    groups = [(title, table(comparison, quantities), quantities) for title, quantities in of_groups]
    return fill(
        Path(__file__).with_name("page.html"),
        comparison=comparison,
        pairs=by_pair(comparison["pairs"]),
        verdict=[(is_evidence, [line.text for line in of_kind]) for is_evidence, of_kind in lines],
        conditions=conditions_line(comparison).replace("`", ""),
        summary=table(comparison, [q for q in CATALOGUE if q.main]),
        images={name: base64.b64encode(image).decode("ascii") for name, image in images.items()},
        latents=latents,
        groups=[group for group in groups if group[1]],
        recipe=recipe,
        between=between,
    )


def table(comparison: dict, quantities: Sequence[Quantity]) -> list[tuple[Quantity, dict[str, Mean]]]:
    """(quantity, arm -> its mean) for the quantities that any arm has.

    A row's numbers are of the same seeds (`row_mean`).
    """
    rows = [(q, {arm: row_mean(comparison, arm, q.key) for arm in comparison["arms"]}) for q in quantities]
    return [(q, means) for q, means in rows if any(mean is not None for mean, _ in means.values())]


def row_mean(comparison: dict, arm: str, key: str) -> Mean:
    """(an arm's mean, its seeds where they are not all of the arm's), so that a row's numbers are of the same seeds.

    Over the seeds of the first pair whose change rests on fewer than the arm has, else the arm's own.
    """
    own = comparison["arms"][arm]
    every = len(own["values"].get(key, ()))
    for pair, entries in by_pair(comparison["pairs"]).items():
        entry = entries.get(key)
        if arm in pair and entry is not None and entry["n_seeds"] > 0 and (every == 0 or entry["n_seeds"] < every):
            seeds = [value["seed"] for value in entry["values"]]
            return entry["a" if arm == pair.arm else "b"], seeds if len(seeds) < len(own["seeds"]) else None
    return own["means"].get(key), None


def between(entry: dict, shown: Sequence[float | None]) -> str:
    """What a change is between, where that is not the two means of its row: of other seeds, or of two SAEs together."""
    means = entry["a"], entry["b"]
    if None in means or all(math.isclose(*pair, rel_tol=1e-9) for pair in zip(means, shown, strict=True)):
        return ""
    return f"{number(means[0])} against {number(means[1])}"
