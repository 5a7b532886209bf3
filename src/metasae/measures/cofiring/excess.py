"""Excess |phi|: how far pairs stray from the fixed-marginals null, beyond what chance makes them stray.

phi_ij - phi0_ij = (N11 - E N11) N / sqrt(Ni (N - Ni) Nj (N - Nj)) with E N11 from `marginals.py`; its mean absolute
value under the null is E|N11 - E N11| in the same units. N11 is close to a binomial with the same mean and variance,
whose mean absolute deviation has a closed form (de Moivre): E|X - np| = 2 n p (1 - p) b(floor(np); n - 1, p).
"""

import math

import numpy as np

from metasae.measures.cofiring.counts import (
    COLUMNS,
    TILE,
    CoFirings,
    counts_by_span,
    excluded,
    live_latents,
    n_pairs_of,
    over_tiles,
)
from metasae.measures.cofiring.marginals import Marginals, fit
from metasae.measures.firing.firings import Firings, block_spans
from metasae.progress.progress import SILENT, Progress

SHARES_ABOVE = (0.05, 0.1, 0.3)
N_SUMS = 5 + len(SHARES_ABOVE)
LEAVE_ONE_OUT = ("excess_abs_phi",)


def mean_abs_deviation(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """E|X - mean| of a binomial with this mean and variance, n not necessarily whole; of a Poisson where the variance
    reaches the mean.

    mean, variance: float64, any one shape, at least 0. Equal to 2 variance b(floor(mean); mean / p - 1, p) with p = 1 -
    variance / mean.
    """
    from scipy.special import gammaln

    p = 1 - np.divide(variance, mean, out=np.ones_like(mean), where=mean > 0)
    # below this the binomial is a Poisson to 1e-5, and the difference of two large logarithms loses digits
    poisson = p < 1e-5
    p = np.where(poisson, 0.5, np.minimum(p, 1 - 1e-12))
    whole = np.floor(mean)
    n = np.maximum(mean / p - 1, whole)
    log_b = gammaln(n + 1) - gammaln(n - whole + 1) + whole * np.log(p) + (n - whole) * np.log1p(-p)
    if poisson.any():
        log_b[poisson] = whole[poisson] * np.log(np.maximum(mean[poisson], np.finfo(float).tiny)) - mean[poisson]
    factorials = gammaln(np.arange(1.0, whole.max(initial=0) + 2))
    return 2 * np.where(poisson, mean, variance) * np.exp(log_b - factorials[whole.astype(np.int64)])


def excess_phi(
    firings: Firings, blocks: np.ndarray | None = None, tile: int = TILE, progress: Progress = SILENT
) -> dict:
    """The excess over the fixed-marginals null, over all pairs i < j of latents that fire on some tokens but not on
    all.

    excess_abs_phi: mean of |phi - phi0| minus null_abs_phi. null_abs_phi: the mean |phi - phi0| of the null itself, the
    floor that comes from finite text. excess_pos, excess_neg: its parts from pairs above and below phi0. signed_phi:
    mean of phi - phi0. mean_phi0: mean of phi0, the phi that comes from the tokens' counts alone. share_above_X: share
    of pairs with phi - phi0 above X. leave_one_out: excess_abs_phi without one block of documents, per block. fit: the
    largest error of all fits of the null, and whether all converged. None where no pair exists or the fit failed.

    blocks: int [T], each token's block of documents, rising (`document_blocks`) -> `leave_one_out` is filled, which
    costs about as much again for every block.
    """
    counts, per_token = firings.counts(), np.diff(firings.indptr)
    latents = live_latents(counts, firings.n_tokens)
    spans = [] if blocks is None else block_spans(blocks)
    nulls = [_Null(fit(counts, per_token), latents)]
    for span, of_block in zip(spans, counts_by_span(firings, spans), strict=True):
        nulls.append(_Null(fit(counts - of_block, np.delete(per_token, slice(*span))), latents))
    cofirings = CoFirings(firings, latents)

    def sums_of(start: int) -> list[list[tuple[float, ...]]]:
        """For each strip of columns the sums of each null."""
        of_blocks = [cofirings.tile(start, tile, span) for span in spans]
        n11 = sum(of_blocks) if spans else cofirings.tile(start, tile)
        strips = []
        for first in range(0, n11.shape[1], COLUMNS):
            columns = slice(first, first + COLUMNS)
            counted = [n11[:, columns]] + [n11[:, columns] - of_block[:, columns] for of_block in of_blocks]
            strips.append([null.sums(part, start, start + first) for null, part in zip(nulls, counted, strict=True)])
        return strips

    tiles = over_tiles(sums_of, len(latents), tile, "co-firing by chance, rates fixed", progress)
    sums = [[strip[place] for strips in tiles for strip in strips] for place in range(len(nulls))]
    whole, *left_out = (_means(parts, null.marginals.converged) for parts, null in zip(sums, nulls, strict=True))
    return {
        **whole,
        "leave_one_out": {name: [means[name] for means in left_out] for name in LEAVE_ONE_OUT},
        "n_pairs": n_pairs_of(len(latents)),
        "n_tokens": firings.n_tokens,
        "excluded": excluded(counts, firings.n_tokens),
        "fit": {
            "error": max(null.marginals.error for null in nulls),
            "converged": all(null.marginals.converged for null in nulls),
        },
    }


class _Null:
    """A fitted null, with what turns its co-firings into phi."""

    def __init__(self, marginals: Marginals, latents: np.ndarray):
        self.marginals, self._latents = marginals, latents
        self._fired = marginals.counts[latents]
        self._total = int(marginals.sizes.sum())
        self._root = np.sqrt(self._fired * (self._total - self._fired).astype(np.float64))

    def sums(self, n11: np.ndarray, start: int, first: int) -> tuple[float, ...]:
        """N_SUMS sums over the pairs i < j in place; they are named in `_means`.

        n11: int64 [r, c] of the latents from places `start` (rows) and `first` (columns) on.
        """
        rows, columns = slice(start, start + n11.shape[0]), slice(first, first + n11.shape[1])
        mean, variance = self.marginals.pair_moments(self._latents[rows], self._latents[columns])
        row, column = self._fired[rows, None], self._fired[None, columns]
        root = self._root[rows, None] * self._root[None, columns]
        # without a block a latent may never fire: it has no phi there
        pairs = (np.arange(first, columns.stop)[None, :] > np.arange(start, rows.stop)[:, None]) & (root > 0)
        to_phi = self._total / root[pairs]
        # given both latents' counts, all four cells of the table stray alike; the smallest is the closest to a binomial
        smallest = np.minimum(np.minimum(mean, self._total - row - column + mean), np.minimum(row, column) - mean)
        expected = mean_abs_deviation(np.maximum(smallest[pairs], 0), variance[pairs])
        excess = to_phi * (n11 - mean)[pairs]
        above = excess[excess > 0]
        return (
            len(excess),
            float(above.sum()),
            float(excess.sum() - above.sum()),
            float(to_phi @ expected),
            float(to_phi @ (mean - row * column / self._total)[pairs]),
            *(np.count_nonzero(above > limit) for limit in SHARES_ABOVE),
        )


def _means(sums: list[tuple[float, ...]], converged: bool) -> dict[str, float | None]:
    """The means from the sums of every tile. The sums are the number of pairs, phi - phi0 where above and where below
    0, its mean absolute value under the null, phi0, and the pairs above each limit.
    """
    totals = [math.fsum(column) for column in zip(*sums, strict=True)] or [0.0] * N_SUMS
    pairs, above, below, expected, phi0, *n_above = totals

    def mean(total: float) -> float | None:
        return total / pairs if pairs and converged else None

    return {
        "excess_abs_phi": mean(above - below - expected),
        "excess_pos": mean(above - expected / 2),
        "excess_neg": mean(-below - expected / 2),
        "signed_phi": mean(above + below),
        "mean_phi0": mean(phi0),
        "null_abs_phi": mean(expected),
        **{f"share_above_{limit:g}": mean(n) for limit, n in zip(SHARES_ABOVE, n_above, strict=True)},
    }
