"""Bootstrap of per-latent scores, and the sign-flip test of paired differences. Not for intervals over three seeds: see `statistics`.

Scores of latents that share a word, or words that share a latent, depend on each other, so whole clusters are drawn with
replacement and a cluster's scores stay together. The interval is BCa (Efron 1987) at the level that makes it as wide as
Student's t is with G clusters: z is replaced by sqrt(G / (G - 1)) t_{G-1} (Hesterberg 2015, arXiv 1411.5279).
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from metasae.intervals.crossed import ALPHA

MIN_CLUSTERS = 20
RESAMPLES = 2000
EXACT_UP_TO = 16

Statistic = Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Bootstrap:
    """estimate: the statistic on all values, None without any. ci95: None where there is none, and the note says why.

    excluded: values that are not finite numbers, left out.
    """

    estimate: float | None
    ci95: tuple[float, float] | None
    n_values: int
    n_clusters: int
    excluded: int
    note: str = ""

    def as_dict(self) -> dict:
        return {
            "estimate": self.estimate,
            "ci95": None if self.ci95 is None else list(self.ci95),
            "n_values": self.n_values,
            "n_clusters": self.n_clusters,
            "excluded": self.excluded,
            "note": self.note,
        }


@dataclass(frozen=True)
class SignFlip:
    """p: two-sided, of differences symmetric around 0; None without differences. smallest_p: what no data of this kind can go below."""

    p: float | None
    smallest_p: float | None
    n: int
    exact: bool
    note: str = ""

    def as_dict(self) -> dict:
        return {"p": self.p, "smallest_p": self.smallest_p, "n": self.n, "exact": self.exact, "note": self.note}


def bootstrap_interval(
    values: np.ndarray,
    statistic: Statistic | None = None,
    *,
    seed: int,
    clusters: np.ndarray | None = None,
    n_resamples: int = RESAMPLES,
) -> Bootstrap:
    """95% interval of statistic(values) when clusters are drawn with replacement.

    values: float [n] or, for a statistic that takes rows, [n, k]; rows with a number that is not finite are left out. statistic: of
    such rows in any number; None: the mean, which is much faster than np.mean. clusters: [n], which rows belong together; None: each
    row for itself. Below MIN_CLUSTERS clusters there is no interval: with 20 it covers 92 to 96% of simulated cases for
    bounded scores, with fewer it falls below 92%, and for heavy tails (lognormal) it covers 88%.
    Raises ValueError when clusters and values differ in length, or rows of several numbers have no statistic.
    """
    values = np.asarray(values, dtype=np.float64)
    if statistic is None and values.ndim > 1:
        raise ValueError("rows of several numbers need a statistic")
    clusters = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    if len(clusters) != len(values):
        raise ValueError(f"{len(values)} values have {len(clusters)} clusters")
    usable = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    excluded = int(np.count_nonzero(~usable))
    values, clusters = values[usable], clusters[usable]
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max()) + 1 if len(cluster) else 0
    estimate = float((statistic or np.mean)(values)) if count else math.nan
    if not math.isfinite(estimate):
        return Bootstrap(
            None, None, len(values), count, excluded, "the statistic is not a number" if count else "no values"
        )
    if count < MIN_CLUSTERS:
        return Bootstrap(
            estimate, None, len(values), count, excluded, f"{count} clusters, fewer than {MIN_CLUSTERS}, no interval"
        )
    interval, note = _bca(values, cluster, count, statistic, seed, n_resamples)
    return Bootstrap(estimate, interval, len(values), count, excluded, note)


def paired_permutation(differences: np.ndarray, seed: int, n_resamples: int = 2**EXACT_UP_TO) -> SignFlip:
    """Sign-flip test of differences [n] against 0, by their mean: the share of sign patterns with a mean as far from 0.

    All 2^n patterns up to n = 16, else `n_resamples` random ones with (1 + hits) / (1 + n_resamples), which is never 0. A
    difference of 0 stays 0, so it adds no pattern. Values that are not finite are left out and counted in the note.
    """
    differences = np.asarray(differences, dtype=np.float64)
    usable = differences[np.isfinite(differences)]
    notes = [f"{len(differences) - len(usable)} not finite, left out"] if len(usable) < len(differences) else []
    if not len(usable):
        return SignFlip(None, None, 0, True, "; ".join([*notes, "no differences"]))
    moved = usable[usable != 0]
    exact = len(moved) <= EXACT_UP_TO
    # sums of the same numbers in another order differ by rounding; such a pattern still counts as being as far
    reach = abs(moved.sum()) - 1e-12 * np.abs(moved).sum()
    if exact:
        p, smallest = float(np.mean(np.abs(_all_signs(len(moved)) @ moved) >= reach)), min(1.0, 2.0 ** (1 - len(moved)))
    else:
        p, smallest = (1 + _random_hits(moved, reach, seed, n_resamples)) / (1 + n_resamples), 1 / (1 + n_resamples)
    if smallest > ALPHA:
        notes.append(f"{len(moved)} differences other than 0: p cannot go below {smallest:g}")
    return SignFlip(p, smallest, len(usable), exact, "; ".join(notes))


def _bca(
    values: np.ndarray, cluster: np.ndarray, count: int, statistic: Statistic | None, seed: int, n_resamples: int
) -> tuple[tuple | None, str]:
    """(interval or None, why not). cluster: int [n], 0 to count - 1."""
    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    widened = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 1 - ALPHA / 2)
    with warnings.catch_warnings():
        # scipy warns of data without spread, which the note says below
        warnings.simplefilter("ignore")
        found = bootstrap(
            (np.arange(count),),
            _of_drawn(values, cluster, statistic),
            vectorized=statistic is None,
            n_resamples=n_resamples,
            batch=max(1, 2**20 // count),
            confidence_level=float(1 - 2 * ndtr(-widened)),
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    drawn, ends = found.bootstrap_distribution, found.confidence_interval
    if not np.isfinite(drawn).all():
        return None, "the statistic is not a number in every resample, no interval"
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():
        return None, "every resample gives the same number, no interval"
    if not (math.isfinite(ends.low) and math.isfinite(ends.high)):
        return None, "the estimate lies at the edge of all resamples, no interval"
    return (float(ends.low), float(ends.high)), ""


def _of_drawn(values: np.ndarray, cluster: np.ndarray, statistic: Statistic | None) -> Callable:
    """The statistic of the rows of the clusters drawn (int [count]); of the mean for many draws at once (int [..., count], axis)."""
    sizes = np.bincount(cluster)
    if statistic is None:
        sums = np.bincount(cluster, values)
        return lambda drawn, axis: sums[drawn].sum(axis) / sizes[drawn].sum(axis)
    values = values[np.argsort(cluster, kind="stable")]
    starts = np.cumsum(sizes) - sizes

    def of_rows(drawn: np.ndarray) -> float:
        ends = np.cumsum(sizes[drawn])
        shift = np.repeat(starts[drawn] - ends + sizes[drawn], sizes[drawn])
        return float(statistic(values[np.arange(ends[-1]) + shift]))

    return of_rows


def _all_signs(n: int) -> np.ndarray:
    """Every pattern of n signs, float64 [2^n, n]."""
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


def _random_hits(moved: np.ndarray, reach: float, seed: int, n_resamples: int) -> int:
    """How many of n_resamples random sign patterns reach that far; a batch of them at a time."""
    rng, hits = np.random.default_rng(seed), 0
    batch = max(1, 2**22 // len(moved))
    for start in range(0, n_resamples, batch):
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(min(batch, n_resamples - start), len(moved)))
        hits += int(np.count_nonzero(np.abs(signs @ moved) >= reach))
    return hits
