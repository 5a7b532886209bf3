"""Scores of one SAE's latents, their means with intervals, and what differs between two arms.

An interval within one SAE is a bootstrap of latents in clusters: latents that fire most often on the same token share what a reader can
say about them. It speaks of these SAEs' other latents; of other seeds only the difference over paired seeds speaks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from metasae.intervals.resampling import bootstrap_interval
from metasae.intervals.statistics import Between, paired_difference

if TYPE_CHECKING:
    from metasae.measures.firing.by_latent import ByLatent

# What each score is worth to a judge that knows nothing.
CHANCE = {
    "detection": 0.5,
    "fuzz_marks": 0.5,
    "fuzz_2afc": 0.0,
    "sim_spearman": 0.0,
    "embedding": 0.5,
    "sense_intruder": 0.2,
}


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
        parts = {}
        for part, values in self.values.items():
            parts[part] = bootstrap_interval(values[rows], seed=seed, clusters=clusters[rows]).as_dict()
            if part in self.shuffled:
                asked = rows[rows < len(self.shuffled[part])]
                parts[part]["shuffled"] = bootstrap_interval(
                    self.shuffled[part][asked], seed=seed, clusters=clusters[asked]
                ).as_dict()
        agreement = {}
        if "repeated" in self.counts:
            agreement["self_agreement"] = (
                self.counts["repeated_alike"] / self.counts["repeated"] if self.counts["repeated"] else None
            )
        return {"chance": self.chance, "parts": parts, **self.counts, **agreement}


def auc(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Share of pairs in which the positive is larger; a tie and a pair with a number that is not known (NaN) count one half.

    None without pairs.
    """
    if not len(positive) or not len(negative):
        return None
    higher = (positive[:, None] > negative).sum()
    lower = (positive[:, None] < negative).sum()
    pairs = len(positive) * len(negative)
    return float((higher + 0.5 * (pairs - higher - lower)) / pairs)


def as_array(values: Sequence[float | None]) -> np.ndarray:
    """float64, NaN for None."""
    return np.array([np.nan if value is None else value for value in values], np.float64)


def other_latents(count: int, seed: int) -> np.ndarray | None:
    """int64 [count]: for every latent another one, each taken once, by one random round; None where there is no other."""
    if count < 2:
        return None
    order = np.random.default_rng(seed).permutation(count)
    by = np.empty(count, np.int64)
    by[order] = np.roll(order, 1)
    return by


def main_tokens(view: "ByLatent", tokens: np.ndarray, latents: Sequence[int]) -> np.ndarray:
    """int64 [m]: the vocabulary id on which each latent fires most often, ties to the lower id; the clusters of the bootstrap."""
    return np.array([np.bincount(tokens[view.latent(int(latent))[0]]).argmax() for latent in latents], np.int64)


def matched_difference(a: np.ndarray, b: np.ndarray, clusters: np.ndarray, seed: int) -> dict:
    """a - b over pairs of matched latents, float64 [p] each: means, the mean difference and its interval; pairs without both are counted."""
    both = np.isfinite(a) & np.isfinite(b)
    found = bootstrap_interval(np.where(both, a - b, np.nan), seed=seed, clusters=clusters).as_dict()
    means = {name: float(values[both].mean()) if both.any() else None for name, values in (("a", a), ("b", b))}
    return {**means, "difference": found.pop("estimate"), **found}


def over_seeds(a: Mapping[int, float | None], b: Mapping[int, float | None], between: Between | None = None) -> dict:
    """The difference of two arms' means, seed by seed, as compare.json has it. between: as in `paired_difference`."""
    return paired_difference(a, b, between=between).as_dict()
