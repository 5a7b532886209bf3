"""Lift: how many times more often than expected two latents fire together, which rates alone do not change.

ln lift_ij = ln((N11 + a) / (E + a)) with a = 1: one co-firing, seen and expected, is added to every pair. It is the log
of the mean of a Gamma(a, a) prior for the lift after N11 ~ Poisson(lift E). a is fixed, not fitted: with a prior fitted
to each SAE the same counts would have another lift in each. E is Ni Nj / N.

p values: N11 is a sum of independent, unlike coin tosses (exactly so for independent latents, whose N11 is
hypergeometric: Vatutin and Mikhailov 1982; nearly so for the fixed marginals), and such a sum has lighter tails than
the binomial with as many tosses and the same mean (Hoeffding, Ann. Math. Stat. 27, 1956). So the tails of binomial(m =
min(Ni, Nj), E / m) are safe beyond 1 from the mean, and nearly exact for rare latents. Two-sided p = twice the tail
beyond N11. Pairs are called at a false discovery rate of 1% (Benjamini and Hochberg 1995) over all pairs. The tests
take tokens as independent draws; tokens of one document are not, so a called pair may owe its lift to a shared topic.
"""

import math

import numpy as np

from metasae.measures.cofiring.counts import COLUMNS, TILE, CoFirings, excluded, n_pairs_of, over_tiles, ratio
from metasae.measures.firing.firings import Firings
from metasae.progress.progress import SILENT, Progress

SHRINKAGE = 1.0
FDR = 0.01
LIFT = 3.0
MIN_FIRINGS = 10
CONTAINED = 0.5
# bins of p: 100 a decade from 1e-14 to the FDR, above which no cut can lie; bins of ln lift: 0.05 wide, with an edge at
# 0 and at -+ln 3
_SMALLEST, _PER_DECADE = -14, 100
_P_BINS = round((math.log10(FDR) - _SMALLEST) * _PER_DECADE) + 1
_ZERO, _WIDE = 280, 22
_LIFT_EDGES = np.arange(-_ZERO, _ZERO + 1) * (math.log(LIFT) / _WIDE)


def log_lift(n11: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """ln((N11 + 1) / (E + 1)), float64."""
    return np.log((n11 + SHRINKAGE) / (expected + SHRINKAGE))


def two_sided_p(n11: np.ndarray, expected: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Twice the tail beyond n11, at most 1, of binomial(draws, expected / draws) at n11.

    All of one shape; 0 <= n11, expected <= draws, draws > 0.
    """
    from scipy.special import betainc

    share = np.minimum(expected / draws, 1.0)
    above = n11 > expected
    # P(X >= k) = I_p(k, m - k + 1), P(X <= k) = P(m - X >= m - k)
    hits = np.where(above, n11, draws - n11)
    # the tail on the side of n11; at the mean itself the other may be smaller, but then p is close to 1 either way
    tail = np.where(hits > 0, betainc(np.maximum(hits, 1), draws - hits + 1, np.where(above, share, 1 - share)), 1.0)
    return np.minimum(2 * tail, 1.0)


def lift_statistics(firings: Firings, tile: int = TILE, progress: Progress = SILENT) -> dict:
    """Lift over all pairs i < j of latents with at least 10 firings that do not always fire, E from independence.

    p_cut: largest p that is called, at most one bin (2.3%) below the exact cut; None when nothing is called.
    share_with_partner: latents with a called partner and |ln lift| > ln 3, over all latents that take part;
    share_with_positive, share_with_negative: in one direction. share_contained: latents with a called partner and phi /
    phi_max > 0.5, so that one of the two fires mostly where the other does. share_pairs_positive, share_pairs_negative:
    pairs called; share_pairs_wide_positive, share_pairs_wide_negative: those with |ln lift| > ln 3. median_positive,
    median_negative: median ln lift of called pairs, within a bin of 0.05. phi_over_max: mean phi / phi_max of the pairs
    with phi > 0; phi_over_max_called: of those called. share_expected_below_5: share of pairs with E < 5, too rare to
    be significant for firing together too seldom. excluded: rare: latents with 1 to 9 firings. A number over no pairs
    is None.
    """
    total, counts = firings.n_tokens, firings.counts()
    latents = np.flatnonzero((counts >= MIN_FIRINGS) & (counts < total))
    fired = counts[latents]
    cofirings = CoFirings(firings, latents)

    def tally_of(start: int) -> _Tally:
        n11, tally = cofirings.tile(start, tile), _Tally(len(latents))
        rows = np.arange(start, start + n11.shape[0])
        for first in range(start, len(latents), COLUMNS):
            columns = np.arange(first, min(first + COLUMNS, len(latents)))
            row, column = np.nonzero(columns[None, :] > rows[:, None])
            tally.count(n11[row, column + first - start], fired, total, rows[row], columns[column])
        return tally

    sums = _Tally(len(latents))
    for tally in over_tiles(tally_of, len(latents), tile, "lift of all pairs", progress):
        sums.add(tally)
    n_pairs = n_pairs_of(len(latents))
    rare = np.count_nonzero((counts > 0) & (counts < min(MIN_FIRINGS, total)))
    without = excluded(counts, total)
    return {
        "null": "independence",
        **sums.results(n_pairs),
        "n_latents": len(latents),
        "n_pairs": n_pairs,
        "n_tokens": total,
        "excluded": {"never": without["never"], "rare": int(rare), "always": without["always"]},
        "conditions": {
            "fdr": FDR,
            "lift": LIFT,
            "shrinkage": SHRINKAGE,
            "min_firings": MIN_FIRINGS,
            "contained": CONTAINED,
        },
    }


def cut_bin(calls: np.ndarray, n_pairs: int) -> int | None:
    """The last bin of p that is called: the largest edge with edge n_pairs / FDR at most the number of p up to it; None
    for none.

    calls: int64 [bins], pairs with p in each bin. A grid of cuts instead of every p calls no more, so the rate still
    holds.
    """
    passes = np.flatnonzero(p_edges() * n_pairs <= FDR * np.cumsum(calls))
    return int(passes[-1]) if len(passes) else None


def p_edges() -> np.ndarray:
    """Upper edges of the bins of p, float64 [bins]; the first bin begins at 0, the last ends at the FDR."""
    return 10.0 ** (_SMALLEST + np.arange(_P_BINS) / _PER_DECADE)


class _Tally:
    """What is counted over pairs.

    calls: int64 [p bins, lift bins]. ratios: sums of phi / phi_max by p bin. best: by latent, the lowest p bin of its
    pairs with ln lift above ln 3, below -ln 3, and with phi / phi_max above 0.5: int64 [3, n]. totals: over all pairs,
    the sum of phi / phi_max where phi > 0, how many pairs that are, and pairs with E < 5: float64 [3].
    """

    def __init__(self, n_latents: int):
        self.calls = np.zeros((_P_BINS, len(_LIFT_EDGES) - 1), np.int64)
        self.ratios = np.zeros(_P_BINS)
        self.best = np.full((3, n_latents), _P_BINS)
        self.totals = np.zeros(3)

    def count(self, n11: np.ndarray, fired: np.ndarray, total: int, rows: np.ndarray, columns: np.ndarray) -> None:
        """Counts some pairs. n11: int64 [pairs]. rows, columns: the two latents of each pair, places in fired, int
        [pairs]. total: tokens.
        """
        of_row, of_column = fired[rows], fired[columns]
        expected, draws = of_row * of_column / total, np.minimum(of_row, of_column)
        lift = log_lift(n11, expected)
        bins = _p_bins(two_sided_p(n11, expected, draws))
        over_max = np.where(n11 > expected, (n11 - expected) / (draws - expected), 0.0)
        n_positive, n_small = np.count_nonzero(over_max), np.count_nonzero(expected < 5)
        self.totals += [over_max.sum(), n_positive, n_small]

        possible = bins < _P_BINS
        bins, lift, over_max = bins[possible], lift[possible], np.where(lift > 0, over_max, 0.0)[possible]
        rows, columns = rows[possible], columns[possible]
        places = np.clip(np.searchsorted(_LIFT_EDGES, lift, side="right") - 1, 0, self.calls.shape[1] - 1)
        flat = bins * self.calls.shape[1] + places
        self.calls += np.bincount(flat, minlength=self.calls.size).reshape(self.calls.shape)
        self.ratios += np.bincount(bins, weights=over_max, minlength=_P_BINS)
        kinds = (places >= _ZERO + _WIDE, places < _ZERO - _WIDE, over_max > CONTAINED)
        for best, chosen in zip(self.best, kinds, strict=True):
            np.minimum.at(best, rows[chosen], bins[chosen])
            np.minimum.at(best, columns[chosen], bins[chosen])

    def add(self, other: "_Tally") -> None:
        self.calls += other.calls
        self.ratios += other.ratios
        np.minimum(self.best, other.best, out=self.best)
        self.totals += other.totals

    def results(self, n_pairs: int) -> dict[str, float | None]:
        """The numbers of `lift_statistics` that are over pairs; all None without pairs."""
        cut = cut_bin(self.calls.sum(1), n_pairs)
        n_bins = 0 if cut is None else cut + 1
        called = self.calls[:n_bins].sum(0)
        n_positive, n_negative = int(called[_ZERO:].sum()), int(called[:_ZERO].sum())
        positive, negative, contained = self.best < n_bins
        over_max, n_over_max, n_small = self.totals.tolist()
        numbers = {
            "share_with_partner": ratio(int((positive | negative).sum()), len(positive)),
            "share_with_positive": ratio(int(positive.sum()), len(positive)),
            "share_with_negative": ratio(int(negative.sum()), len(positive)),
            "share_contained": ratio(int(contained.sum()), len(positive)),
            "share_pairs_positive": ratio(n_positive, n_pairs),
            "share_pairs_negative": ratio(n_negative, n_pairs),
            "share_pairs_wide_positive": ratio(int(called[_ZERO + _WIDE :].sum()), n_pairs),
            "share_pairs_wide_negative": ratio(int(called[: _ZERO - _WIDE].sum()), n_pairs),
            "median_positive": _median(_LIFT_EDGES[_ZERO:], called[_ZERO:]),
            "median_negative": _median(_LIFT_EDGES[: _ZERO + 1], called[:_ZERO]),
            "phi_over_max": ratio(over_max, n_over_max),
            "phi_over_max_called": ratio(float(self.ratios[:n_bins].sum()), n_positive),
            "p_cut": None if cut is None else float(p_edges()[cut]),
            "share_expected_below_5": ratio(n_small, n_pairs),
        }
        return numbers if n_pairs else dict.fromkeys(numbers)


def _p_bins(p: np.ndarray) -> np.ndarray:
    """Bin of every p, int64; the number of bins for p above the FDR."""
    logs = np.log10(np.maximum(p, 10.0 ** (_SMALLEST - 1)))
    return np.clip(np.ceil((logs - _SMALLEST) * _PER_DECADE), 0, _P_BINS).astype(np.int64)


def _median(edges: np.ndarray, counts: np.ndarray) -> float | None:
    """The median of binned numbers, linear within its bin."""
    total = int(counts.sum())
    if not total:
        return None
    below = np.cumsum(counts)
    bin_ = int(np.searchsorted(below, total / 2))
    share = (total / 2 - (below[bin_] - counts[bin_])) / counts[bin_]
    return float(edges[bin_] + share * (edges[bin_ + 1] - edges[bin_]))
