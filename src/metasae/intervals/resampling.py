"""Bootstrap of per-latent scores. Not for intervals over three seeds: see `statistics`.

Scores of latents that share a word, or words that share a latent, depend on each other, so whole clusters are drawn
with replacement and a cluster's scores stay together. The interval is BCa (Efron 1987) at the level that makes it as
wide as Student's t is with G clusters: z is replaced by sqrt(G / (G - 1)) t_{G-1} (Hesterberg 2015, arXiv 1411.5279).
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np

from metasae.intervals.crossed import ALPHA

MIN_CLUSTERS = 20


@dataclass(frozen=True)
class Bootstrap:
    """estimate: the mean of all values, None without values. ci95: its interval; if None, the note says why.

    excluded: number of values left out, as they are not finite.
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


def bootstrap_interval(
    values: np.ndarray, *, seed: int, clusters: np.ndarray | None = None, n_resamples: int = 2000
) -> Bootstrap:
    """95% interval of the mean of values [n] when clusters are drawn with replacement.

    Values that are not finite are left out. clusters: [n], the cluster of each value; None: each value is its own.
    Below MIN_CLUSTERS clusters there is no interval: with 20 it covers 92 to 96% of simulated cases for bounded scores,
    with fewer it falls below 92%, and for heavy tails (lognormal) it covers 88%.
    """
    values = np.asarray(values, dtype=np.float64)
    clusters = np.arange(len(values)) if clusters is None else np.asarray(clusters)
    usable = np.isfinite(values)
    excluded = int(np.count_nonzero(~usable))
    values, clusters = values[usable], clusters[usable]
    _, cluster = np.unique(clusters, return_inverse=True)
    count = int(cluster.max(initial=-1)) + 1
    estimate, interval, note = None, None, "no values"
    if count:
        estimate, note = float(np.mean(values)), f"{count} clusters, fewer than {MIN_CLUSTERS}, no interval"
    if count >= MIN_CLUSTERS:
        interval, note = _bca(values, cluster, count, seed, n_resamples)
    return Bootstrap(estimate, interval, len(values), count, excluded, note)


def _bca(
    values: np.ndarray, cluster: np.ndarray, count: int, seed: int, n_resamples: int
) -> tuple[tuple[float, float] | None, str]:
    """(interval, "") or (None, the reason). cluster: int [n], 0 to count - 1."""
    from scipy.special import ndtr, stdtrit
    from scipy.stats import bootstrap

    sizes, sums = np.bincount(cluster), np.bincount(cluster, values)

    def mean_of(drawn: np.ndarray, axis: int) -> np.ndarray:
        """drawn: int [..., count], the drawn clusters of many resamples at once."""
        return sums[drawn].sum(axis) / sizes[drawn].sum(axis)

    widened = math.sqrt(count / (count - 1)) * stdtrit(count - 1, 1 - ALPHA / 2)
    with warnings.catch_warnings():
        # scipy warns of data without spread; the note below says so instead
        warnings.simplefilter("ignore")
        resampled = bootstrap(
            (np.arange(count),),
            mean_of,
            vectorized=True,
            n_resamples=n_resamples,
            batch=max(1, 2**20 // count),
            confidence_level=float(1 - 2 * ndtr(-widened)),
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    drawn, ends = resampled.bootstrap_distribution, resampled.confidence_interval
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():
        return None, "every resample gives the same number, no interval"
    if not (math.isfinite(ends.low) and math.isfinite(ends.high)):
        return None, "the estimate lies at the edge of all resamples, no interval"
    return (float(ends.low), float(ends.high)), ""
