"""The columns of one SAE's table of latents as arrays, read once: sorting and filtering them takes a millisecond.

SQLite lets go of Python's lock at every row that it returns, and has to win it back from all other readers: with several of them an answer
of thousands of rows waits thousands of times. So a column is asked for as one row, a text of latents and values by turns.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from metasae.explore.store.schema import SCALARS, key_of

# Orders that are kept, a quarter of a megabyte each at 65,000 latents.
ORDERS = 64
_BY_TURNS = "SELECT group_concat(latent || ' ' || quote(value), ' ') FROM"
_SCALAR = (
    f"{_BY_TURNS} (SELECT latent, {{}} AS value FROM latents WHERE key BETWEEN :low AND :high) WHERE value IS NOT NULL"
)
# texts are sorted by their place among all, as SQLite orders texts
_TEXTS = {
    "top_tokens": f"{_BY_TURNS} (SELECT latent, DENSE_RANK() OVER (ORDER BY top_tokens) AS value FROM latents WHERE key BETWEEN :low AND :high)",
    "explanation": f"{_BY_TURNS} (SELECT key - :low AS latent, DENSE_RANK() OVER (ORDER BY text) AS value FROM explanations "
    "WHERE key BETWEEN :low AND :high)",
}
_SCORE = f"{_BY_TURNS} scores WHERE sae = :sae AND score = :score AND part = :part AND value IS NOT NULL"


class Columns:
    """ask(sql, parameters) -> rows. sae: its number in the store. n: its latents. scores: the (score, part) that its latents have."""

    def __init__(self, ask: Callable, sae: int, n: int, scores: list[tuple[str, str]]):
        self._ask, self._sae, self.n, self.scores = ask, sae, n, scores
        self.column = lru_cache(maxsize=None)(self._read)
        self.order = lru_cache(maxsize=ORDERS)(self._sorted)

    def _read(self, name: str) -> np.ndarray:
        """float64 [n]: the numbers of a column, or the places of its texts; NaN where a latent has none. Raises KeyError for no column."""
        if name == "latent":
            return np.arange(self.n, dtype=np.float64)
        parts = {f"interp.{score}.{part}": {"score": score, "part": part} for score, part in self.scores}
        if name in parts:
            return self._by_turns(_SCORE, {"sae": self._sae, **parts[name]})
        # names of columns come from our own lists alone
        sql = _SCALAR.format(name) if name in SCALARS else _TEXTS[name]
        return self._by_turns(sql, {"low": key_of(self._sae, 0), "high": key_of(self._sae + 1, 0) - 1})

    def _by_turns(self, sql: str, parameters: Mapping) -> np.ndarray:
        found = np.full(self.n, np.nan)
        ((text,),) = self._ask(sql, parameters)
        if text:
            latents, values = np.fromstring(text, np.float64, sep=" ").reshape(-1, 2).T
            found[latents.astype(np.int64)] = values
        return found

    def _sorted(self, name: str, descending: bool) -> np.ndarray:
        return in_order(self.column(name), descending)


def in_order(values: np.ndarray, descending: bool) -> np.ndarray:
    """The places int32 [n] of float64 [n] in order: NaN last, equals in their own order."""
    return np.argsort(-values if descending else values, kind="stable").astype(np.int32)
