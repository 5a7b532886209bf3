"""Scores of one SAE's latents and their means with intervals.

An interval within one SAE is a bootstrap of latents in clusters: latents that fire most often on the same token share what a reader can
say about them. It is an interval over these SAEs' other latents; only the difference over paired seeds is one over other seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from metasae.interp.choice import CHANCE
from metasae.interp.coverage import LatentWindows
from metasae.intervals.resampling import bootstrap_interval
from metasae.measures.firing.by_latent import ByLatent

# (the SAE's firings, windows of m latents, for each the one whose explanation is borrowed or None) -> one score of them
Scorer = Callable[[ByLatent, Sequence[LatentWindows], np.ndarray | None], "Score"]


@dataclass(frozen=True)
class Score:
    """One score of m latents (or pairs of them). values: part -> float64 [m], NaN for a latent without that part's windows.

    Parts are the kinds of silent windows, or "all" where a score has none. shuffled: the same with another latent's explanation, of the
    first latents alone where no more were asked; empty where there is no such floor. counts: what was asked and how much of it could not
    be read. explanations: of the m latents, None for one that could not be read; empty where the score has none.
    """

    key: str
    values: dict[str, np.ndarray]
    shuffled: dict[str, np.ndarray] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    explanations: tuple[str | None, ...] = ()

    @property
    def chance(self) -> float:
        return CHANCE[self.key]

    def as_dict(self, rows: Sequence[int], clusters: np.ndarray, seed: int) -> dict:
        """Means over these of the m latents. clusters: int [m]."""
        rows = np.asarray(rows, np.int64)

        def mean(values: np.ndarray) -> dict:
            asked = rows[rows < len(values)]
            return bootstrap_interval(values[asked], seed=seed, clusters=clusters[asked]).as_dict()

        parts = {part: mean(values) for part, values in self.values.items()}
        for part in parts.keys() & self.shuffled.keys():
            parts[part]["shuffled"] = mean(self.shuffled[part])
        summary = {"chance": self.chance, "parts": parts, **self.counts}
        if "repeated" in self.counts:
            alike, repeated = self.counts["repeated_alike"], self.counts["repeated"]
            summary["self_agreement"] = alike / repeated if repeated else None
        return summary


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Share of pairs in which the positive is larger; a tie and a pair with a number that is not known (NaN) count one half.

    NaN without pairs.
    """
    pairs = len(positive) * len(negative)
    if not pairs:
        return np.nan
    higher = (positive[:, None] > negative).sum()
    lower = (positive[:, None] < negative).sum()
    return float((higher + 0.5 * (pairs - higher - lower)) / pairs)


def other_latents(count: int, seed: int) -> np.ndarray | None:
    """int64 [count]: for every latent another one, each taken once, by one random round; None where there is no other."""
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(count)
    by = np.empty(count, np.int64)
    by[order] = np.roll(order, 1)
    return by
