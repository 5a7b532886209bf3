"""Which latents of an SAE are listed: sorted, filtered, and perhaps searched (`search.py`).

A column of the table is read once; sorting and filtering it then takes a millisecond.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache

import numpy as np

from metasae.explore.store.open_store import OpenStore, SaeFacts
from metasae.explore.store.schema import MEANINGS, SCALARS, keys_of

MOST = 500
# Orders that are kept, a quarter of a megabyte each at 65,000 latents.
ORDERS = 64
TEXTS = {"top_tokens": "tokens it fires on most", "explanation": "explanation", "label": "label"}
# Column -> its latents and their numbers. Texts are sorted by their place among all, as SQLite orders texts.
_COLUMNS = {
    **{name: f"SELECT latent, {name} FROM latents WHERE key BETWEEN :low AND :high" for name in SCALARS},
    "latent": "SELECT latent, latent FROM latents WHERE key BETWEEN :low AND :high",
    "top_tokens": """SELECT latent, DENSE_RANK() OVER (ORDER BY top_tokens) FROM latents
        WHERE key BETWEEN :low AND :high""",
    "explanation": """SELECT key - :low, DENSE_RANK() OVER (ORDER BY text) FROM explanations
        WHERE key BETWEEN :low AND :high""",
}
_SCORE = "SELECT latent, value FROM scores WHERE sae = :sae AND score = :score AND part = :part"


class LatentTable:
    """The latents of one SAE."""

    def __init__(self, store: OpenStore, facts: SaeFacts):
        self._ask, self._facts = store.ask, facts
        self._low, self._high = keys_of(facts.id)
        self.column = lru_cache(maxsize=None)(self._read)
        self._order = lru_cache(maxsize=ORDERS)(lambda name, descending: _in_order(self.column(name), descending))

    @cached_property
    def columns(self) -> list[dict]:
        """Of each column: key, label, kind, meaning, and `empty`: whether no latent has a number in it."""
        counts = ", ".join(f"COUNT({name})" for name in SCALARS)
        (row,) = self._ask(f"SELECT {counts} FROM latents WHERE key BETWEEN ? AND ?", (self._low, self._high))
        empty = {name for name, count in zip(SCALARS, row, strict=True) if not count}
        scores = {name: f"{asked['score']}, {asked['part']}" for name, asked in self._scores.items()}
        numbers = {"latent": "latent", **SCALARS, **scores}
        columns = [
            {"key": key, "label": label, "kind": "number", "meaning": MEANINGS.get(key, ""), "empty": key in empty}
            for key, label in numbers.items()
        ]
        return columns + [{"key": key, "label": label, "kind": "text", "empty": False} for key, label in TEXTS.items()]

    def listed(
        self,
        sort: str,
        descending: bool,
        labels: Mapping[int, str],
        searched: np.ndarray | None = None,
        *,
        min_rate: float | None = None,
        max_rate: float | None = None,
        label: str | None = None,
        dead: bool = False,
    ) -> np.ndarray:
        """All latents that pass, int32 [m], in order.

        Latents without a value in the sorted column come last; equal values keep the order of the latents. labels:
        latent -> label. searched: bool [n], the latents that a search found. min_rate, max_rate: of firing. label:
        the current one. dead: latents that never fire pass too. Raises ValueError for an unknown column.
        """
        known = [column["key"] for column in self.columns]
        if sort not in known:
            raise ValueError(f"no column '{sort}' to sort by; known: {', '.join(known)}")
        n = self._facts.n
        labelled = np.full(n, "", object)
        labelled[list(labels)] = list(labels.values())
        order = _in_order(_places(labelled), descending) if sort == "label" else self._order(sort, descending)
        passing = np.ones(n, bool) if searched is None else searched.copy()
        if not dead:
            passing &= self.column("firings") != 0
        if min_rate is not None:
            passing &= self.column("rate") >= min_rate
        if max_rate is not None:
            passing &= self.column("rate") <= max_rate
        if label:
            passing &= labelled == label
        return order[passing[order]]

    @cached_property
    def _scores(self) -> dict[str, dict]:
        """Column -> its score of auto-interp and the part of that score; only scores that some latent has."""
        sql = "SELECT DISTINCT score, part FROM scores WHERE sae = ? ORDER BY score, part"
        rows = self._ask(sql, (self._facts.id,))
        return {f"interp.{score}.{part}": {"score": score, "part": part} for score, part in rows}

    def _read(self, name: str) -> np.ndarray:
        """float64 [n]: the numbers of a column, or the ranks of its texts; NaN where a latent has none.

        Raises KeyError for an unknown column.
        """
        given = {"low": self._low, "high": self._high, "sae": self._facts.id, **self._scores.get(name, {})}
        rows = self._ask(_SCORE if name in self._scores else _COLUMNS[name], given)
        column = np.full(self._facts.n, np.nan)
        latents, values = np.array(rows, np.float64).reshape(-1, 2).T
        column[latents.astype(np.int64)] = values
        return column


def _in_order(values: np.ndarray, descending: bool) -> np.ndarray:
    """int32 [n]: the indices that sort float64 [n]; NaN last, equal values in their own order."""
    return np.argsort(-values if descending else values, kind="stable").astype(np.int32)


def _places(labels: np.ndarray) -> np.ndarray:
    """float64 [n]: the alphabetical rank of each label, NaN for none."""
    places = np.unique(labels.astype(str), return_inverse=True)[1].reshape(-1)
    return np.where(labels == "", np.nan, places)
