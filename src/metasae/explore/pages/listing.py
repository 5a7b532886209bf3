"""The table of an SAE's latents: which of them pass, in which order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from metasae.explore.store.columns import Columns, in_order
from metasae.explore.store.schema import MEANINGS, SCALARS

MOST = 500
TEXTS = {"top_tokens": "tokens it fires on most", "explanation": "explanation", "label": "label"}


@dataclass(frozen=True)
class Filters:
    """search: words of an explanation, or the beginning of a top token. min_rate, max_rate: of firing. label: as it counts. dead: silent ones too."""

    search: str | None = None
    min_rate: float | None = None
    max_rate: float | None = None
    label: str | None = None
    dead: bool = False


def columns_of(scores: list[tuple[str, str]]) -> list[dict]:
    numbers = {
        "latent": "latent",
        **SCALARS,
        **{f"interp.{score}.{part}": f"{score}, {part}" for score, part in scores},
    }
    found = [
        {"key": key, "label": label, "kind": "number", "meaning": MEANINGS.get(key, "")}
        for key, label in numbers.items()
    ]
    return found + [{"key": key, "label": label, "kind": "text"} for key, label in TEXTS.items()]


def listed(
    columns: Columns,
    sort: str,
    descending: bool,
    filters: Filters,
    labels: Mapping[int, str],
    found: np.ndarray | None = None,
) -> np.ndarray:
    """All latents that pass, int32 [m], in order. Those without what is sorted by come last, equals in their own order.

    labels: latent -> label. found: bool [n], the latents that the search found, where there is one. Raises ValueError for a column
    that is not there.
    """
    known = [column["key"] for column in columns_of(columns.scores)]
    if sort not in known:
        raise ValueError(f"no column '{sort}' to sort by; known: {', '.join(known)}")
    order = in_order(_places(labels, columns.n), descending) if sort == "label" else columns.order(sort, descending)
    passing = np.ones(columns.n, bool) if found is None else found.copy()
    if not filters.dead:
        passing &= columns.column("firings") != 0
    if filters.min_rate is not None:
        passing &= columns.column("rate") >= filters.min_rate
    if filters.max_rate is not None:
        passing &= columns.column("rate") <= filters.max_rate
    if filters.label:
        passing &= np.isin(np.arange(columns.n), [latent for latent, label in labels.items() if label == filters.label])
    return order[passing[order]]


def _places(labels: Mapping[int, str], n: int) -> np.ndarray:
    """Each latent's label by its place in the alphabet, NaN without one: float64 [n]."""
    place = {label: number for number, label in enumerate(sorted(set(labels.values())))}
    found = np.full(n, np.nan)
    for latent, label in labels.items():
        found[latent] = place[label]
    return found
